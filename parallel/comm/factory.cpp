#include "parallel/comm/factory.h"

#include "parallel/comm/mpi_world.h"
#include "parallel/comm/progress.h"
#include "runtime/core/error.h"

namespace emox {
namespace {

/// A communicator together with the MPI job that it belongs to.
class JobCommunicator final : public Communicator, public WatchedRank {
 public:
  explicit JobCommunicator(MpiWorldOptions options) : job_(options), world_(job_.world()) {}
  int rank() const override { return world_->rank(); }
  int size() const override { return world_->size(); }
  const std::vector<int>& nodes() const override { return world_->nodes(); }
  std::string_view transport() const override { return world_->transport(); }
  void note_progress() noexcept override { report_progress(*world_); }
  void note_io(bool begins) noexcept override {
    if (auto* const watched = dynamic_cast<WatchedRank*>(world_.get())) watched->note_io(begins);
  }

 private:
  void do_all_reduce(TensorView x, ReduceOp op) override { world_->all_reduce(x, op); }
  void do_all_gather(TensorView out, TensorView in) override { world_->all_gather(out, in); }
  void do_all_gather_v(TensorView x, std::span<const std::int64_t> cuts) override { world_->all_gather_v(x, cuts); }
  void do_reduce_scatter(TensorView x, std::span<const std::int64_t> cuts) override { world_->reduce_scatter(x, cuts); }
  void do_broadcast(TensorView x, int root) override { world_->broadcast(x, root); }
  void do_all_to_all_v_start(const RowExchange& e) override {
    world_->all_to_all_v_start(e.out, e.recv_rows, e.in, e.send_rows);
  }
  void do_all_to_all_v_finish(const RowExchange&) override { world_->all_to_all_v_finish(); }
  void do_all_to_all_v_abandon() noexcept override { world_->all_to_all_v_abandon(); }
  void do_barrier() override { world_->barrier(); }
  std::unique_ptr<Communicator> do_split(int color, int key) override { return world_->split(color, key); }

  MpiWorld job_;  // first: it must be there before, and go after, the communicator
  std::unique_ptr<Communicator> world_;
};

}  // namespace

Transport parse_transport(std::string_view name) {
  if (name == "auto") return Transport::Auto;
  if (name == "self") return Transport::Self;
  if (name == "mpi") return Transport::Mpi;
  fail<UsageError>("parallel.communicator = {} is not one of auto, self, mpi", name);
}

std::unique_ptr<Communicator> make_communicator(Transport transport, double watchdog_s, double io_watchdog_s) {
  require<UsageError>(watchdog_s >= 0, "parallel.watchdog_s = {}: use a positive number of seconds, or 0 for none",
                      watchdog_s);
  const int ranks = MpiWorld::launched_ranks();
  require<UsageError>(
      transport != Transport::Self || ranks == 1,
      "parallel.communicator = self, but the launcher started {} ranks, which would all do the same work: "
      "use auto or mpi, or start one rank",
      ranks);
  const bool mpi = transport == Transport::Mpi || (transport == Transport::Auto && ranks > 1);
  if (!mpi) return make_self_communicator();
  return std::make_unique<JobCommunicator>(MpiWorldOptions{.watchdog_s = watchdog_s, .io_watchdog_s = io_watchdog_s});
}

}  // namespace emox
