#include "tests/support/ranks.h"

#include <chrono>
#include <condition_variable>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <mutex>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#ifdef _OPENMP
#include <omp.h>
#endif

#include "runtime/core/error.h"

namespace emox::test {
namespace {

constexpr std::chrono::seconds kAfterAbort{10};

class RankThreads {
 public:
  RankThreads(ThreadWorld& world, const std::function<void(Communicator&)>& body)
      : world_(world), body_(body), running_(world.size()) {
    for (int r = 0; r < world.size(); ++r) threads_.emplace_back([this, r] { run(r); });
  }

  void finish(int timeout_s) {
    std::unique_lock lock(mutex_);
    const bool timely = done_.wait_for(lock, std::chrono::seconds(timeout_s), [this] { return running_ == 0; });
    if (!timely) {
      lock.unlock();
      // Ranks that wait in a collective can still be freed; a rank that hangs elsewhere can only be shot.
      const std::string text = "the ranks did not finish within " + std::to_string(timeout_s) + " s";
      world_.abort(-1, text);
      lock.lock();
      if (!done_.wait_for(lock, kAfterAbort, [this] { return running_ == 0; })) {
        std::fprintf(stderr, "run_ranks: %s, and a rank hangs outside of collectives\n", text.c_str());
        std::abort();
      }
    }
    lock.unlock();
    for (std::thread& t : threads_) t.join();
    if (first_) std::rethrow_exception(first_);
  }

 private:
  void run(int rank) {
    set_error_rank(rank);
#ifdef _OPENMP
    omp_set_num_threads(1);
#endif
    try {
      const std::unique_ptr<Communicator> comm = world_.communicator(rank);
      body_(*comm);
    } catch (const std::exception& e) {
      give_up(rank, e.what());
    } catch (...) {
      give_up(rank, "an exception of unknown type");
    }
    const std::lock_guard lock(mutex_);
    --running_;
    done_.notify_all();
  }

  void give_up(int rank, const std::string& text) {
    {
      // The first in time is the cause: the others' errors follow from the abort below.
      const std::lock_guard lock(mutex_);
      if (!first_) first_ = std::current_exception();
    }
    world_.abort(rank, text);
  }

  ThreadWorld& world_;
  const std::function<void(Communicator&)>& body_;
  std::mutex mutex_;
  std::condition_variable done_;
  int running_;
  std::exception_ptr first_;
  std::vector<std::thread> threads_;
};

}  // namespace

void run_ranks(ThreadWorld& world, const std::function<void(Communicator&)>& body, int timeout_s) {
  RankThreads(world, body).finish(timeout_s);
}

void run_ranks(int n, const std::function<void(Communicator&)>& body, int timeout_s) {
  ThreadWorld world(n);
  run_ranks(world, body, timeout_s);
}

}  // namespace emox::test
