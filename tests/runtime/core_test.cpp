// Shapes, views, buffers, the arena and errors.
#include <bit>
#include <cmath>
#include <cstring>
#include <thread>

#include "runtime/core/arena.h"
#include "tests/runtime/op_testing.h"

namespace emox::test {
namespace {

// The message of the E that `call` raises.
template <typename E = Error>
std::string message_of(const std::function<void()>& call) {
  try {
    call();
  } catch (const E& e) {
    return e.message();
  }
  ADD_FAILURE() << "nothing was raised";
  return "";
}

TEST(Shape, CountsAndSlices) {
  EXPECT_EQ(Shape().numel(), 1);
  EXPECT_EQ(Shape().rank(), 0);
  const Shape s{2, 3, 5};
  EXPECT_EQ(s.numel(), 30);
  EXPECT_EQ(s.rank(), 3);
  EXPECT_EQ(s.tail(), (Shape{3, 5}));
  EXPECT_EQ(Shape{4}.tail(), Shape());
  EXPECT_EQ(s.with_rows(7), (Shape{7, 3, 5}));
  EXPECT_EQ(s.str(), "[2, 3, 5]");
  EXPECT_EQ(Shape().str(), "[]");
  EXPECT_EQ((Shape{3, 0, 2}.numel()), 0);
  EXPECT_NE((Shape{2, 3}), (Shape{3, 2}));
  EXPECT_NE((Shape{2}), (Shape{2, 0}));
  EXPECT_NE((Shape{2}), (Shape{2, 1}));
}

TEST(Shape, RefusesWhatIsNoShape) {
  EXPECT_NE(message_of<ShapeError>([] { (void)Shape{1, 1, 1, 1, 1}; }).find("got 5"), std::string::npos);
  EXPECT_NE(message_of<ShapeError>([] { (void)Shape{3, -2}; }).find("-2"), std::string::npos);
  EXPECT_THROW((void)Shape().tail(), ShapeError);
  EXPECT_THROW((void)Shape().with_rows(1), ShapeError);
}

TEST(TensorView, RowsLookAtTheSameMemory) {
  const Tensor t = tensor_of(std::vector<float>{0, 1, 2, 3, 4, 5}, {3, 2});
  const TensorView v = t;
  EXPECT_EQ(floats(v.rows(1, 3)), (std::vector<float>{2, 3, 4, 5}));
  EXPECT_EQ(v.rows(1, 1).shape(), (Shape{0, 2}));
  EXPECT_EQ(v.rows(3, 3).numel(), 0);
  EXPECT_EQ(v[2].shape(), Shape{2});
  EXPECT_EQ(floats(v[2]), (std::vector<float>{4, 5}));
  EXPECT_EQ(v[1][0].shape(), Shape());
  EXPECT_EQ(floats(v.reshape({2, 3})[1]), (std::vector<float>{3, 4, 5}));
  v[2].data<float>()[0] = 9;
  EXPECT_EQ(t.view().data<float>()[4], 9);
  EXPECT_EQ(v.bytes(), 24U);
}

TEST(TensorView, RefusesRowsAndShapesThatDoNotFit) {
  const Tensor t = filled({3, 2}, 0.0F);
  const TensorView v = t;
  EXPECT_NE(message_of<ShapeError>([&] { (void)v.rows(1, 4); }).find("[1, 4)"), std::string::npos);
  EXPECT_THROW((void)v.rows(-1, 2), ShapeError);
  EXPECT_THROW((void)v.rows(2, 1), ShapeError);
  EXPECT_THROW((void)v[3], ShapeError);
  EXPECT_THROW((void)v[-1], ShapeError);
  EXPECT_THROW((void)v.reshape({}).rows(0, 0), ShapeError);
  const std::string message = message_of<ShapeError>([&] { (void)v.reshape({4, 2}); });
  EXPECT_NE(message.find("[3, 2]"), std::string::npos);
  EXPECT_NE(message.find("[4, 2]"), std::string::npos);
  const std::string type = message_of<ShapeError>([&] { (void)v.data<std::int32_t>(); });
  EXPECT_NE(type.find("f32"), std::string::npos);
  EXPECT_NE(type.find("i32"), std::string::npos);
}

TEST(TensorView, NullIsAViewOfNothing) {
  EXPECT_TRUE(TensorView().null());
  EXPECT_FALSE(filled({1}, 0.0F).view().null());
  EXPECT_TRUE(TensorView(nullptr, DType::F32, {4, 2}).rows(1, 3).null());
}

TEST(DType, SizesAndNames) {
  EXPECT_EQ(size_of(DType::F32) + size_of(DType::I32), 8U);
  EXPECT_EQ(size_of(DType::F64) + size_of(DType::I64), 16U);
  EXPECT_EQ(size_of(DType::U8), 1U);
  EXPECT_EQ(size_of(DType::BF16), 2U);
  EXPECT_EQ(name_of(dtype_of<Bf16>()), "bf16");
  EXPECT_EQ(name_of(dtype_of<double>()), "f64");
  EXPECT_EQ(name_of(dtype_of<std::int64_t>()), "i64");
  EXPECT_EQ(name_of(dtype_of<std::uint8_t>()), "u8");
}

// Against the nearest of the two neighbours found by searching, for every upper half and lower halves around the tie.
TEST(Bf16, RoundsToTheNearestTiesToEven) {
  for (std::uint32_t upper = 0; upper < 0x10000; ++upper) {
    const float below = std::bit_cast<float>(upper << 16);
    if (!std::isfinite(below)) continue;
    const float above = std::bit_cast<float>((upper + 1) << 16);  // away from zero; infinity behind the largest
    EXPECT_EQ(static_cast<float>(Bf16(below)), below);
    for (const std::uint32_t lower : {1U, 0x7FFFU, 0x8000U, 0x8001U, 0xFFFFU}) {
      const float x = std::bit_cast<float>(upper << 16 | lower);
      const bool up = lower > 0x8000 || (lower == 0x8000 && upper % 2 == 1);
      ASSERT_EQ(static_cast<float>(Bf16(x)), up ? above : below) << x;
    }
  }
  EXPECT_EQ(rounded_to_bf16(1.0F + static_cast<float>(kBf16Epsilon) * 0.51F), 1.0F + static_cast<float>(kBf16Epsilon));
}

TEST(Bf16, NoNaNBecomesInfinity) {
  for (const std::uint32_t bits : {0x7F800001U, 0x7FC00000U, 0x7FFFFFFFU, 0xFF800001U, 0xFFFFFFFFU}) {
    const auto x = static_cast<float>(Bf16(std::bit_cast<float>(bits)));
    EXPECT_TRUE(std::isnan(x));
    EXPECT_EQ(std::signbit(x), (bits >> 31) != 0);
  }
  for (const float x : {std::numeric_limits<float>::infinity(), -std::numeric_limits<float>::infinity(), 0.0F, -0.0F})
    EXPECT_EQ(std::bit_cast<std::uint32_t>(rounded_to_bf16(x)), std::bit_cast<std::uint32_t>(x));
}

TEST(Buffer, IsZeroedAlignedAndCounted) {
  const MemoryStats before = memory_stats();
  reset_memory_peak();
  for (const std::size_t bytes : {std::size_t{1}, std::size_t{1000}, std::size_t{5} << 20}) {
    Buffer b({}, bytes);
    EXPECT_EQ(reinterpret_cast<std::uintptr_t>(b.data()) % 256, 0U);
    const std::vector<char> zeros(bytes);
    EXPECT_EQ(std::memcmp(b.data(), zeros.data(), bytes), 0);
    EXPECT_EQ(memory_stats().allocated, before.allocated + static_cast<std::int64_t>(bytes));
    Buffer moved(std::move(b));
    EXPECT_EQ(memory_stats().allocated, before.allocated + static_cast<std::int64_t>(bytes));
    EXPECT_EQ(moved.bytes(), bytes);
    Buffer other({}, 10);
    other = std::move(moved);  // gives back the ten bytes
    EXPECT_EQ(memory_stats().allocated, before.allocated + static_cast<std::int64_t>(bytes));
  }
  EXPECT_EQ(memory_stats().allocated, before.allocated);
  EXPECT_EQ(memory_stats().peak, before.allocated + (std::int64_t{5} << 20) + 10);
  reset_memory_peak();
  EXPECT_EQ(memory_stats().peak, before.allocated);
}

TEST(Buffer, OfNoBytesIsNull) {
  const MemoryStats before = memory_stats();
  EXPECT_EQ(Buffer({}, 0).data(), nullptr);
  EXPECT_EQ(memory_stats().allocated, before.allocated);
}

TEST(Buffer, OnACudaDeviceIsRefused) {
  const Device cuda{DeviceType::Cuda, 0};
  EXPECT_NE(message_of([&] { Buffer(cuda, 8); }).find("without CUDA"), std::string::npos);
}

// What a layer does at start-up: permanent memory, then scratch that is given back and used again.
std::vector<TensorView> plan(Arena& arena) {
  std::vector<TensorView> views{arena.f32({3, 5}), arena.i32({7}), arena.f32({0, 4}), arena.allocate(DType::U8, {1})};
  const std::size_t mark = arena.mark();
  views.push_back(arena.f32({100}));
  arena.rewind(mark);
  views.push_back(arena.f32({10}));
  return views;
}

TEST(Arena, MeasuresWhatItThenNeeds) {
  Arena counting = Arena::measuring();
  for (const TensorView& v : plan(counting)) EXPECT_TRUE(v.null());
  const std::size_t bytes = counting.peak();
  EXPECT_EQ(bytes, 256U + 256U + 0U + 256U + 512U);  // each rounded up to 256 bytes

  Arena real({}, bytes);
  const std::vector<TensorView> views = plan(real);
  EXPECT_EQ(real.peak(), bytes);
  EXPECT_EQ(real.mark(), counting.mark());
  EXPECT_EQ(views[4].raw(), views[5].raw());
  for (const TensorView& v : views) EXPECT_EQ(reinterpret_cast<std::uintptr_t>(v.raw()) % 256, 0U);
  // No two overlap: each is written with its own number.
  for (std::size_t i = 0; i < views.size(); ++i) {
    if (i != 4) std::memset(views[i].raw(), static_cast<int>(i + 1), views[i].bytes());
  }
  for (std::size_t i = 0; i < views.size(); ++i) {
    const auto* bytes_of = static_cast<const unsigned char*>(views[i].raw());
    for (std::size_t b = 0; i != 4 && b < views[i].bytes(); ++b) ASSERT_EQ(bytes_of[b], i + 1);
  }
}

TEST(Arena, ActivationsHaveTheirType) {
  for (const DType type : {DType::F32, DType::BF16}) {
    Arena counting = Arena::measuring({}, type);
    EXPECT_EQ(counting.activation({64, 3}).dtype(), type);
    EXPECT_EQ(counting.peak(), type == DType::F32 ? 768U : 512U);  // 384 rounded up
    Arena real({}, counting.peak(), type);
    EXPECT_EQ(real.activation({64, 3}).dtype(), type);
    EXPECT_EQ(real.growing_activation({5, 2})->rows(5).bytes(), 10 * size_of(type));
    EXPECT_EQ(real.growing_bytes(), 10 * size_of(type));
  }
}

TEST(Arena, OneByteLessIsTooLittle) {
  Arena counting = Arena::measuring();
  plan(counting);
  Arena small({}, counting.peak() - 1);
  const std::string message = message_of([&] { plan(small); });
  EXPECT_NE(message.find("1279"), std::string::npos) << message;   // its size
  EXPECT_NE(message.find("768"), std::string::npos) << message;    // in use
  EXPECT_NE(message.find("[100]"), std::string::npos) << message;  // wanted
}

TEST(Arena, OfNothingGivesEmptyViews) {
  Arena empty({}, 0);
  EXPECT_EQ(empty.f32({0, 3}).shape(), (Shape{0, 3}));
  EXPECT_EQ(empty.peak(), 0U);
  EXPECT_THROW((void)empty.f32({1}), Error);
}

TEST(Error, CarriesRankAndPlace) {
  set_error_rank(3);
  try {
    fail<CommError>("{} is not {}", 1, "two");
  } catch (const CommError& e) {
    EXPECT_EQ(e.message(), "1 is not two");
    EXPECT_EQ(e.rank(), 3);
    EXPECT_NE(std::string(e.what()).find("1 is not two [rank 3] (core_test.cpp:"), std::string::npos) << e.what();
  }
  std::thread([] {
    EXPECT_EQ(error_rank(), 0);  // each thread has its own
    set_error_rank(1);
  }).join();
  EXPECT_EQ(error_rank(), 3);
  set_error_rank(0);
}

TEST(Error, RequireRaisesOnlyWhenItMust) {
  EXPECT_NO_THROW(require(true, "no"));
  EXPECT_THROW(require<UsageError>(false, "yes"), UsageError);
  EXPECT_THROW(require<IoError>(false, "yes"), Error);  // all of them are Errors
  EXPECT_THROW(require<ShapeError>(false, "yes"), std::runtime_error);
}

}  // namespace
}  // namespace emox::test
