#include "parallel/comm/mpi_peers.h"

#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <thread>
#include <type_traits>

#include "runtime/core/idx.h"

namespace emox {
namespace {

constexpr int kQuestionTag = 1;
constexpr int kReplyTag = 2;
constexpr unsigned kAbortSeconds = 10;

}  // namespace

MpiPeers::MpiPeers(MPI_Comm comm, const ActivityLog& log) : comm_(comm), log_(log) {
  MPI_CHECK(MPI_Comm_rank(comm_, &rank_));
}

template <typename T>
void MpiPeers::send(const T& message, int to, int tag) {
  static_assert(std::is_trivially_copyable_v<T>);
  std::erase_if(sent_, [](Sent& s) {
    int done = 0;
    MPI_CHECK(MPI_Test(&s.request, &done, MPI_STATUS_IGNORE));
    return done != 0;
  });
  Sent& s = sent_.emplace_back(Sent{std::vector<std::byte>(sizeof message), MPI_REQUEST_NULL});
  std::memcpy(s.bytes.data(), &message, sizeof message);
  MPI_CHECK(MPI_Isend(s.bytes.data(), static_cast<int>(sizeof message), MPI_BYTE, to, tag, comm_, &s.request));
}

template <typename T>
bool MpiPeers::receive(T& message, int tag, int& from) {
  int found = 0;
  MPI_Status status;
  MPI_CHECK(MPI_Iprobe(MPI_ANY_SOURCE, tag, comm_, &found, &status));
  if (found == 0) return false;
  from = status.MPI_SOURCE;
  MPI_CHECK(MPI_Recv(&message, static_cast<int>(sizeof message), MPI_BYTE, from, tag, comm_, MPI_STATUS_IGNORE));
  return true;
}

void MpiPeers::answer() {
  Question question{};
  int from = 0;
  while (receive(question, kQuestionTag, from))
    send(Reply{question.number, log_.status(question.comm_id)}, from, kReplyTag);
}

std::vector<std::optional<RankStatus>> MpiPeers::ask(const std::vector<int>& ranks, std::uint64_t comm_id,
                                                     double wait_s) {
  const std::int64_t number = ++questions_;
  std::vector<std::optional<RankStatus>> replies(ranks.size());
  std::size_t missing = ranks.size();
  for (std::size_t i = 0; i < ranks.size(); ++i) {
    if (ranks[i] == rank_) {
      replies[i] = log_.status(comm_id);
      --missing;
    } else {
      send(Question{comm_id, number}, ranks[i], kQuestionTag);
    }
  }
  const auto until = std::chrono::steady_clock::now() + std::chrono::duration<double>(wait_s);
  while (missing > 0 && std::chrono::steady_clock::now() < until) {
    answer();  // others may be asking at the same time
    Reply reply{};
    int from = 0;
    if (!receive(reply, kReplyTag, from)) {
      std::this_thread::sleep_for(std::chrono::milliseconds(10));
      continue;
    }
    const auto place = std::find(ranks.begin(), ranks.end(), from);
    if (reply.number != number || place == ranks.end()) continue;  // late answer to an earlier question
    replies[idx(place - ranks.begin())] = reply.status;
    --missing;
  }
  return replies;
}

int MpiPeers::ranks() const {
  int size = 0;
  MPI_CHECK(MPI_Comm_size(comm_, &size));
  return size;
}

void MpiPeers::end_job(const std::string&) {
  // Should MPI itself be what hangs, the alarm ends this process, and the launcher then ends the others.
  ::alarm(kAbortSeconds);
  MPI_Abort(MPI_COMM_WORLD, 1);
}

void MpiPeers::farewell() {
  MPI_Request all_done = MPI_REQUEST_NULL;
  MPI_CHECK(MPI_Ibarrier(comm_, &all_done));
  for (int done = 0; done == 0;) {
    MPI_CHECK(MPI_Test(&all_done, &done, MPI_STATUS_IGNORE));
    if (done == 0) std::this_thread::sleep_for(std::chrono::milliseconds(2));
  }
}

}  // namespace emox
