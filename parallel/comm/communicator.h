// One small interface for all traffic between ranks (design 4.3). `self` makes one rank a special case of nothing,
// `threads` runs ranks as threads of one process (tests, sanitizers), `mpi` is the CPU default.
//
// Every call is collective: all ranks of the communicator make the same calls in the same order. A call returns when
// the result is in place. Sums run in rank order or in an order fixed by the transport: the same ranks give the same
// bits.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>

#include "runtime/core/tensor.h"

namespace emox {

enum class ReduceOp : std::uint8_t { Sum, Max };

class Communicator {
 public:
  virtual ~Communicator() = default;
  virtual int rank() const = 0;
  virtual int size() const = 0;
  /// Ranks that share this rank's node, and this rank's place among them.
  virtual int node_size() const = 0;
  virtual int node_rank() const = 0;
  virtual std::string_view transport() const = 0;  ///< "self", "threads", "mpi"

  /// x = sum (or max) over ranks of x; f32, f64, i32, i64. Large tensors are cut into pieces of 4 MiB.
  virtual void all_reduce(TensorView x, ReduceOp op = ReduceOp::Sum) = 0;
  /// out[size * n, ...] = the ranks' in[n, ...] in rank order; equal n on all ranks.
  virtual void all_gather(TensorView out, TensorView in) = 0;
  /// out[n, ...] = this rank's block of the sum over ranks of in[size * n, ...]
  virtual void reduce_scatter(TensorView out, TensorView in) = 0;
  /// x on every rank = x on `root`.
  virtual void broadcast(TensorView x, int root) = 0;
  /// Rows travel: in[sum send_rows, ...] holds the rows for rank 0, 1, ... one after another; out[sum recv_rows, ...]
  /// receives likewise. Byte counts beyond 2^31 are cut into pieces.
  virtual void all_to_all_v(TensorView out, std::span<const std::int64_t> recv_rows, TensorView in,
                            std::span<const std::int64_t> send_rows) = 0;
  virtual void barrier() = 0;
  /// The ranks of equal color form a communicator, ordered by (key, rank).
  virtual std::unique_ptr<Communicator> split(int color, int key) = 0;
};

/// One rank.
std::unique_ptr<Communicator> make_self_communicator();

}  // namespace emox
