// How the data of an NCCL call moves, once all its ranks have come: through the host, sums in rank order.
#include <algorithm>
#include <cstring>

#include "runtime/core/idx.h"
#include "tests/support/cuda_emulator/faults.h"
#include "tests/support/cuda_emulator/nccl_world.h"
#include "tests/support/cuda_emulator/state.h"

using emox::idx;

namespace emu {
namespace {

using Bytes = std::vector<unsigned char>;

// The copies of the C library are what ThreadSanitizer sees.
Bytes read(const NcclPart& p, std::size_t bytes) {
  const PeerWork here(p.device);
  Bytes b(bytes);
  if (bytes > 0) std::memcpy(b.data(), p.from, bytes);
  return b;
}
void write(const NcclPart& p, const unsigned char* from, std::size_t bytes) {
  const PeerWork here(p.device);
  if (bytes > 0) std::memcpy(p.to, from, bytes);
}

template <typename T>
void combine(Bytes& into, const Bytes& other, ncclRedOp_t op) {
  auto* const a = reinterpret_cast<T*>(into.data());
  const auto* const b = reinterpret_cast<const T*>(other.data());
  for (std::size_t i = 0; i < into.size() / sizeof(T); ++i) {
    if (op == ncclSum) a[i] = static_cast<T>(a[i] + b[i]);
    if (op == ncclMax) a[i] = std::max(a[i], b[i]);
    if (op == ncclMin) a[i] = std::min(a[i], b[i]);
  }
}

void combine(Bytes& into, const Bytes& other, const NcclOp& op) {
  switch (op.type) {
    case ncclInt32:
      return combine<std::int32_t>(into, other, op.reduce);
    case ncclInt64:
      return combine<std::int64_t>(into, other, op.reduce);
    case ncclFloat32:
      return combine<float>(into, other, op.reduce);
    case ncclFloat64:
      return combine<double>(into, other, op.reduce);
    default:
      throw LaunchFailure("NCCL: sums of type " + std::to_string(op.type) + " are not emulated");
  }
}

Bytes sum_of(const NcclOp& op, std::size_t bytes) {
  if (op.reduce == ncclProd || op.reduce == ncclAvg) throw LaunchFailure("NCCL: such a sum is not emulated");
  Bytes sum = read(op.parts[0], bytes);
  for (std::size_t r = 1; r < op.parts.size(); ++r) combine(sum, read(op.parts[r], bytes), op);
  return sum;
}

}  // namespace

std::size_t bytes_of(ncclDataType_t type) {
  static constexpr std::size_t kBytes[] = {1, 1, 4, 4, 8, 8, 2, 4, 8, 2};
  return kBytes[type];
}

void execute(NcclOp& op) {
  const std::size_t bytes = op.count * bytes_of(op.type);
  std::vector<NcclPart>& parts = op.parts;
  if (op.kind == "message") {
    write(parts[1], read(parts[0], bytes).data(), bytes);
  } else if (op.kind == "broadcast") {
    const Bytes data = read(parts[idx(op.root)], bytes);
    for (const NcclPart& p : parts)
      if (p.to != parts[idx(op.root)].from) write(p, data.data(), bytes);
  } else if (op.kind == "all_gather") {
    std::vector<Bytes> data;
    for (const NcclPart& p : parts) data.push_back(read(p, bytes));
    for (NcclPart p : parts)
      for (const Bytes& d : data) {
        write(p, d.data(), bytes);
        p.to = static_cast<unsigned char*>(p.to) + bytes;
      }
  } else if (op.kind == "reduce_scatter") {
    const Bytes sum = sum_of(op, bytes * parts.size());
    for (std::size_t r = 0; r < parts.size(); ++r) write(parts[r], sum.data() + r * bytes, bytes);
  } else {
    const Bytes sum = sum_of(op, bytes);
    for (std::size_t r = 0; r < parts.size(); ++r)
      if (op.kind == "all_reduce" || static_cast<int>(r) == op.root) write(parts[r], sum.data(), bytes);
  }
}

}  // namespace emu
