#include <cstring>
#include <memory>

#include "parallel/comm/communicator.h"
#include "runtime/core/error.h"

namespace emox {
namespace {

void copy_bytes(const TensorView& out, const TensorView& in) {
  require<CommError>(out.raw() == in.raw() || out.device().type == DeviceType::Cpu,
                     "one rank alone gathers in place on a device; these tensors {} are two", in.shape().str());
  if (out.bytes() != 0 && out.raw() != in.raw()) std::memcpy(out.raw(), in.raw(), in.bytes());
}

class SelfCommunicator final : public Communicator {
 public:
  int rank() const override { return 0; }
  int size() const override { return 1; }
  const std::vector<int>& nodes() const override { return nodes_; }
  std::string_view transport() const override { return "self"; }
  /// Sums of one rank are what they were, so nothing need be read.
  bool device_memory() const override { return true; }

 private:
  void do_all_reduce(TensorView, ReduceOp) override {}
  void do_all_gather(TensorView out, TensorView in) override { copy_bytes(out, in); }
  void do_all_gather_v(TensorView, std::span<const RowRange>) override {}
  void do_reduce_scatter(TensorView, std::span<const RowRange>) override {}
  void do_broadcast(TensorView, int) override {}
  void do_all_to_all_v_start(std::span<const RowExchange>) override {}
  void do_all_to_all_v_finish(std::span<const RowExchange> exchanges) override {
    for (const RowExchange& e : exchanges) copy_bytes(e.out, e.in);
  }
  void do_barrier() override {}
  std::unique_ptr<Communicator> do_split(int, int) override { return make_self_communicator(); }

  const std::vector<int> nodes_{0};
};

}  // namespace

std::unique_ptr<Communicator> make_self_communicator() { return std::make_unique<SelfCommunicator>(); }

}  // namespace emox
