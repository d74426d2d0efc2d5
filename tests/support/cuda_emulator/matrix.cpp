#include "tests/support/cuda_emulator/matrix.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "tests/support/cuda_emulator/sanitizers.h"

namespace emu {
namespace {

float widened(std::uint16_t bits) {
  const std::uint32_t word = static_cast<std::uint32_t>(bits) << 16;
  float x;
  std::memcpy(&x, &word, sizeof x);
  return x;
}
/// To the nearest, ties to even; NaN stays NaN.
std::uint16_t narrowed(float x) {
  std::uint32_t word;
  std::memcpy(&word, &x, sizeof word);
  if (x != x) return static_cast<std::uint16_t>(word >> 16 | 0x40U);
  return static_cast<std::uint16_t>((word + 0x7fffU + (word >> 16 & 1U)) >> 16);
}

/// op(X) of one matrix of the batch, row-major, as floats.
std::vector<float> rows_of(const Operand& x, std::int64_t batch) {
  const Matrix& m = x.matrix;
  const auto* bytes = static_cast<const unsigned char*>(x.data) + batch * m.step * m.size();
  const bool lines_are_rows = (m.order == CUBLASLT_ORDER_ROW) != x.transposed;
  const std::int64_t lines = m.lines(), length = m.length();
  std::vector<float> out(static_cast<std::uint64_t>(lines * length));
  for (std::int64_t l = 0; l < lines; ++l) {
    const unsigned char* line = bytes + l * m.ld * m.size();
    note_read(line, static_cast<std::uint64_t>(length * m.size()));
    for (std::int64_t i = 0; i < length; ++i) {
      float v;
      if (m.type == CUDA_R_16BF) {
        std::uint16_t bits;
        std::memcpy(&bits, line + 2 * i, 2);
        v = widened(bits);
      } else {
        std::memcpy(&v, line + 4 * i, 4);
      }
      out[static_cast<std::uint64_t>(lines_are_rows ? l * length + i : i * lines + l)] = v;
    }
  }
  return out;
}

void write_rows(const std::vector<float>& from, const Matrix& m, void* to, std::int64_t batch) {
  auto* bytes = static_cast<unsigned char*>(to) + batch * m.step * m.size();
  const bool lines_are_rows = m.order == CUBLASLT_ORDER_ROW;
  const std::int64_t lines = m.lines(), length = m.length();
  for (std::int64_t l = 0; l < lines; ++l) {
    unsigned char* line = bytes + l * m.ld * m.size();
    note_write(line, static_cast<std::uint64_t>(length * m.size()));
    for (std::int64_t i = 0; i < length; ++i) {
      const float v = from[static_cast<std::uint64_t>(lines_are_rows ? l * length + i : i * lines + l)];
      if (m.type == CUDA_R_16BF) {
        const std::uint16_t bits = narrowed(v);
        std::memcpy(line + 2 * i, &bits, 2);
      } else {
        std::memcpy(line + 4 * i, &v, 4);
      }
    }
  }
}

/// y += a x
void add_scaled(float* __restrict__ y, const float* __restrict__ x, float a, std::int64_t n) {
  using Vector [[gnu::vector_size(16)]] = float;
  std::int64_t i = 0;
  for (; i + 4 <= n; i += 4) {  // neither is aligned
    Vector to, from;
    std::memcpy(&to, y + i, sizeof to);
    std::memcpy(&from, x + i, sizeof from);
    to += a * from;
    std::memcpy(y + i, &to, sizeof to);
  }
  for (; i < n; ++i) y[i] += a * x[i];
}

}  // namespace

bool overlap(const Matrix& a, const void* at_a, const Matrix& b, const void* at_b) {
  const auto from_a = reinterpret_cast<std::uintptr_t>(at_a), from_b = reinterpret_cast<std::uintptr_t>(at_b);
  const auto bytes_a = static_cast<std::uintptr_t>(a.all_bytes()), bytes_b = static_cast<std::uintptr_t>(b.all_bytes());
  if (from_a + bytes_a <= from_b || from_b + bytes_b <= from_a) return false;
  const std::int64_t pitch = a.ld * a.size();
  if (pitch != b.ld * b.size() || a.batch > 1 || b.batch > 1) return true;
  // Where in its line of the larger matrix each begins.
  const auto ahead = static_cast<std::int64_t>(from_a < from_b ? from_b - from_a : from_a - from_b) % pitch;
  const Matrix &first = from_a < from_b ? a : b, &second = from_a < from_b ? b : a;
  return ahead < first.length() * first.size() || ahead + second.length() * second.size() > pitch;
}

void multiply(const Operand& a, const Operand& b, const Operand& c, const Matrix& d, void* to, float alpha,
              float beta) {
  const std::int64_t m = d.rows, n = d.cols, k = a.transposed ? a.matrix.rows : a.matrix.cols;
  constexpr std::int64_t kLines = 64;  // of B stay in the cache
  for (std::int64_t batch = 0; batch < d.batch; ++batch) {
    const std::vector<float> x = rows_of(a, batch), y = rows_of(b, batch);
    std::vector<float> out(static_cast<std::uint64_t>(m * n));
    for (std::int64_t from = 0; from < k; from += kLines)
      for (std::int64_t i = 0; i < m; ++i)
        for (std::int64_t j = from; j < std::min(k, from + kLines); ++j)
          add_scaled(&out[static_cast<std::uint64_t>(i * n)], &y[static_cast<std::uint64_t>(j * n)],
                     x[static_cast<std::uint64_t>(i * k + j)], n);
    for (float& v : out) v *= alpha;
    if (beta != 0) {
      const std::vector<float> base = rows_of(c, batch);
      for (std::size_t i = 0; i < out.size(); ++i) out[i] += beta * base[i];
    }
    write_rows(out, d, to, batch);
  }
}

}  // namespace emu
