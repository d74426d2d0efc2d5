// What the op tests share: contexts, poisoned outputs, and a run that repeats every call with 1 and 2 threads.
//
// Tolerances. kEps is the spacing of float32 at 1. A sum of n products in float32, in whatever order, is off by at most
// about n kEps/2 times the sum of the absolute products (Higham, section 3.1). Every tolerance here is `rounding(terms,
// magnitude)`: the number of roundings that lie on the way to one result times the largest magnitude that is rounded.
#pragma once

#include <algorithm>
#include <cstring>
#include <functional>
#include <limits>
#include <random>
#include <vector>

#include "runtime/core/context.h"
#include "runtime/core/error.h"
#include "tests/support/reference.h"
#include "tests/support/support.h"

namespace emox::test {

constexpr double kEps = 0x1.0p-23;
/// Roundings of one elementary function and the operations around it.
constexpr double kFunction = 8;

inline double rounding(double terms, double magnitude) { return terms * kEps * magnitude; }

inline Context context(int threads = 1) {
  Context ctx;
  ctx.threads = threads;
  return ctx;
}

inline Tensor filled(Shape shape, float value) {
  Tensor t({}, DType::F32, shape);
  std::fill_n(t.view().data<float>(), shape.numel(), value);
  return t;
}

/// An output that must be assigned: what is left of it shows.
inline Tensor poison(Shape shape) { return filled(shape, std::numeric_limits<float>::quiet_NaN()); }

inline Tensor ids_of(const ref::Ids& v) { return tensor_of(v, {static_cast<std::int64_t>(v.size())}); }

/// Nothing of a null view.
inline std::vector<float> floats(const TensorView& t) { return t.null() ? std::vector<float>{} : values_of<float>(t); }

/// One of `choices`, or (every third time) something up to `most`.
inline std::int64_t any_size(std::mt19937& gen, std::initializer_list<std::int64_t> choices, std::int64_t most) {
  if (gen() % 3 == 0) return 1 + static_cast<std::int64_t>(gen() % static_cast<unsigned>(most));
  return *(choices.begin() + gen() % choices.size());
}

/// Ascending, from 0 to `total`; empty pieces occur.
inline ref::Ids any_segments(std::mt19937& gen, std::int64_t total, int pieces) {
  ref::Ids cuts{0, static_cast<std::int32_t>(total)};
  for (int i = 1; i < pieces; ++i) cuts.push_back(static_cast<std::int32_t>(gen() % static_cast<unsigned>(total + 1)));
  std::sort(cuts.begin(), cuts.end());
  return cuts;
}

using Outputs = std::vector<std::vector<float>>;

inline bool same_bits(const Outputs& a, const Outputs& b) {
  if (a.size() != b.size()) return false;
  for (std::size_t i = 0; i < a.size(); ++i) {
    if (a[i].size() != b[i].size()) return false;
    if (!a[i].empty() && std::memcmp(a[i].data(), b[i].data(), a[i].size() * sizeof(float)) != 0) return false;
  }
  return true;
}

/// Runs with 1 and with 2 threads, twice each: equal bits, and `check` of the result.
inline void run_and_check(const std::function<Outputs(Context&)>& run,
                          const std::function<void(const Outputs&)>& check) {
  for (const int threads : {1, 2}) {
    SCOPED_TRACE(::testing::Message() << threads << " threads");
    Context ctx = context(threads);
    const Outputs first = run(ctx);
    EXPECT_TRUE(same_bits(first, run(ctx))) << "the same call gave other bits";
    check(first);
  }
}

/// The call must be refused with a ShapeError that names the op.
inline void expect_shape_error(const char* op, const std::function<void()>& call) {
  try {
    call();
    ADD_FAILURE() << op << " accepted operands that do not fit";
  } catch (const ShapeError& e) {
    EXPECT_NE(e.message().find(op), std::string::npos) << e.message();
  } catch (const std::exception& e) {
    ADD_FAILURE() << op << " raised something else: " << e.what();
  }
}

}  // namespace emox::test
