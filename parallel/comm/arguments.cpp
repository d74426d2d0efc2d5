#include "parallel/comm/arguments.h"

#include "runtime/core/error.h"
#include "runtime/core/idx.h"

namespace emox {
namespace {

void check_memory(std::string_view op, const TensorView& t, bool devices = false) {
  require<CommError>(devices || t.device().type == DeviceType::Cpu,
                     "{} moves host memory, this tensor {} lies on a GPU: copy it to a host buffer first", op,
                     t.shape().str());
  require<ShapeError>(!t.null() || t.bytes() == 0, "{} was handed a tensor {} without memory", op, t.shape().str());
}

void check_summable(std::string_view op, const TensorView& t, bool devices) {
  check_memory(op, t, devices);
  // A sum in bf16 would lose what it adds: it is taken in f32, and rounded afterwards where that is wanted.
  require<ShapeError>(t.dtype() != DType::U8 && t.dtype() != DType::BF16, "{} adds f32, f64, i32 and i64, not {}", op,
                      name_of(t.dtype()));
}

void check_dtypes(std::string_view op, const TensorView& out, const TensorView& in) {
  require<ShapeError>(out.dtype() == in.dtype(), "{}: input is {}, output is {}", op, name_of(in.dtype()),
                      name_of(out.dtype()));
}

/// Ranges of rows that rise, each with an owner.
void check_ranges(std::string_view op, const TensorView& x, std::span<const RowRange> ranges, int size) {
  require<ShapeError>(x.rank() >= 1, "{} shares out rows, this tensor {} has none", op, x.shape().str());
  std::int64_t from = 0;
  for (std::size_t i = 0; i < ranges.size(); ++i) {
    const RowRange& r = ranges[i];
    require<ShapeError>(from <= r.begin && r.begin < r.end && r.end <= x.dim(0),
                        "{}: range {} is rows [{}, {}), but rows {} to {} of a tensor {} are what is left", op, i,
                        r.begin, r.end, from, x.dim(0), x.shape().str());
    require<ShapeError>(0 <= r.owner && r.owner < size, "{}: range {} belongs to rank {} of {}", op, i, r.owner, size);
    from = r.end;
  }
}

/// The sum of one rank's row counts, which must be the rows of its tensor.
void check_rows(std::string_view what, const TensorView& t, std::span<const std::int64_t> rows, int size) {
  require<ShapeError>(rows.size() == idx(size), "all_to_all_v: {} row counts for {} ranks ({})", rows.size(), size,
                      what);
  std::int64_t total = 0;
  for (const std::int64_t n : rows) {
    require<ShapeError>(n >= 0, "all_to_all_v: a row count of {} ({})", n, what);
    total += n;
  }
  require<ShapeError>(t.rank() >= 1 && t.dim(0) == total,
                      "all_to_all_v: the {} counts add up to {} rows, the tensor is {}", what, total, t.shape().str());
}

}  // namespace

void check_all_reduce(const TensorView& x, bool devices) { check_summable("all_reduce", x, devices); }

void check_all_gather(const TensorView& out, const TensorView& in, int size, bool devices) {
  check_memory("all_gather", out, devices);
  check_memory("all_gather", in, devices);
  check_dtypes("all_gather", out, in);
  require<ShapeError>(out.numel() == in.numel() * size,
                      "all_gather of {} ranks: input {}, output {}; want {} times as many", size, in.shape().str(),
                      out.shape().str(), size);
}

void check_all_gather_v(const TensorView& x, std::span<const RowRange> ranges, int size, bool devices) {
  check_memory("all_gather_v", x, devices);
  check_ranges("all_gather_v", x, ranges, size);
}

void check_reduce_scatter(const TensorView& x, std::span<const RowRange> ranges, int size, bool devices) {
  check_summable("reduce_scatter", x, devices);
  check_ranges("reduce_scatter", x, ranges, size);
}

void check_broadcast(const TensorView& x, int root, int size, bool devices) {
  check_memory("broadcast", x, devices);
  require<CommError>(root >= 0 && root < size, "broadcast from rank {} of {}", root, size);
}

void check_split(int color) {
  require<CommError>(color >= 0, "split: color {}, but every rank belongs to a part: use a color >= 0", color);
}

void check_all_to_all_v(const TensorView& out, std::span<const std::int64_t> recv_rows, const TensorView& in,
                        std::span<const std::int64_t> send_rows, int rank, int size, bool devices) {
  check_memory("all_to_all_v", out, devices);
  check_memory("all_to_all_v", in, devices);
  require<CommError>(out.device() == in.device() || out.bytes() == 0 || in.bytes() == 0,
                     "all_to_all_v: one of the tensors {} and {} is on a device, the other is not", in.shape().str(),
                     out.shape().str());
  check_dtypes("all_to_all_v", out, in);
  check_rows("send", in, send_rows, size);
  check_rows("receive", out, recv_rows, size);
  const auto self = idx(rank);
  require<ShapeError>(send_rows[self] == recv_rows[self], "all_to_all_v: {} rows sent to oneself, {} expected",
                      send_rows[self], recv_rows[self]);
  require<ShapeError>(in.shape().tail() == out.shape().tail(), "all_to_all_v: rows of {} into rows of {}",
                      in.shape().tail().str(), out.shape().tail().str());
}

}  // namespace emox
