#include <memory>
#include <utility>

#include "parallel/comm/communicator.h"
#include "runtime/core/error.h"

namespace emox {
namespace {

class PlannedCommunicator final : public Communicator {
 public:
  PlannedCommunicator(int rank, std::vector<int> nodes) : rank_(rank), nodes_(std::move(nodes)) {}
  int rank() const override { return rank_; }
  int size() const override { return static_cast<int>(nodes_.size()); }
  const std::vector<int>& nodes() const override { return nodes_; }
  std::string_view transport() const override { return "planned"; }

 private:
  [[noreturn]] static void refuse() { fail<CommError>("the ranks of a plan do not run: nothing can be exchanged"); }
  void do_all_reduce(TensorView, ReduceOp) override { refuse(); }
  void do_all_gather(TensorView, TensorView) override { refuse(); }
  void do_all_gather_v(TensorView, std::span<const RowRange>) override { refuse(); }
  void do_reduce_scatter(TensorView, std::span<const RowRange>) override { refuse(); }
  void do_broadcast(TensorView, int) override { refuse(); }
  void do_all_to_all_v_start(std::span<const RowExchange>) override { refuse(); }
  void do_all_to_all_v_finish(std::span<const RowExchange>) override { refuse(); }
  void do_barrier() override { refuse(); }
  std::unique_ptr<Communicator> do_split(int, int) override { refuse(); }

  int rank_;
  std::vector<int> nodes_;
};

}  // namespace

std::unique_ptr<Communicator> make_planned_communicator(int rank, std::vector<int> nodes) {
  return std::make_unique<PlannedCommunicator>(rank, std::move(nodes));
}

}  // namespace emox
