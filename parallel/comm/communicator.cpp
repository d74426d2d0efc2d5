#include "parallel/comm/communicator.h"

#include <algorithm>

#include "parallel/comm/arguments.h"
#include "runtime/core/error.h"

namespace emox {

int Communicator::node_size() const {
  const std::vector<int>& all = nodes();
  return static_cast<int>(std::count(all.begin(), all.end(), all[static_cast<std::size_t>(rank())]));
}

int Communicator::node_rank() const {
  const std::vector<int>& all = nodes();
  return static_cast<int>(std::count(all.begin(), all.begin() + rank(), all[static_cast<std::size_t>(rank())]));
}

void Communicator::require_idle(std::string_view op) const {
  require<CommError>(!exchange_open_,
                     "{} while an all_to_all_v is open on this communicator: call all_to_all_v_finish first", op);
}

void Communicator::all_reduce(TensorView x, ReduceOp op) {
  require_idle("all_reduce");
  check_all_reduce(x);
  do_all_reduce(x, op);
}

void Communicator::all_gather(TensorView out, TensorView in) {
  require_idle("all_gather");
  check_all_gather(out, in, size());
  do_all_gather(out, in);
}

void Communicator::all_gather_v(TensorView x, std::span<const std::int64_t> cuts) {
  require_idle("all_gather_v");
  check_all_gather_v(x, cuts, size());
  do_all_gather_v(x, cuts);
}

void Communicator::reduce_scatter(TensorView x, std::span<const std::int64_t> cuts) {
  require_idle("reduce_scatter");
  check_reduce_scatter(x, cuts, size());
  do_reduce_scatter(x, cuts);
}

void Communicator::broadcast(TensorView x, int root) {
  require_idle("broadcast");
  check_broadcast(x, root, size());
  do_broadcast(x, root);
}

void Communicator::all_to_all_v_start(TensorView out, std::span<const std::int64_t> recv_rows, TensorView in,
                                      std::span<const std::int64_t> send_rows) {
  require_idle("all_to_all_v");
  check_all_to_all_v(out, recv_rows, in, send_rows, rank(), size());
  exchange_.out = out;
  exchange_.recv_rows.assign(recv_rows.begin(), recv_rows.end());
  exchange_.in = in;
  exchange_.send_rows.assign(send_rows.begin(), send_rows.end());
  do_all_to_all_v_start(exchange_);
  exchange_open_ = true;
}

void Communicator::all_to_all_v_finish() {
  require<CommError>(exchange_open_, "all_to_all_v_finish without an all_to_all_v_start on this communicator");
  exchange_open_ = false;
  do_all_to_all_v_finish(exchange_);
}

void Communicator::all_to_all_v_abandon() noexcept {
  exchange_open_ = false;
  do_all_to_all_v_abandon();
}

void Communicator::barrier() {
  require_idle("barrier");
  do_barrier();
}

std::unique_ptr<Communicator> Communicator::split(int color, int key) {
  require_idle("split");
  check_split(color);
  return do_split(color, key);
}

}  // namespace emox
