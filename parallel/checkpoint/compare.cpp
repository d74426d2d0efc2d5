// How two checkpoints differ, array by array: a part of inspect.h.
#include "parallel/checkpoint/inspect.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <tuple>
#include <unordered_map>

#include "parallel/checkpoint/open_files.h"
#include "parallel/comm/together.h"
#include "runtime/core/error.h"

namespace emox {
namespace {

/// Elements [begin, end) of an array, which lie in one dataset of each checkpoint.
struct Segment {
  std::size_t array;  ///< its place among the common ones
  const ManifestTensor *a, *b;
  std::int64_t begin, end;
};

/// What the ranks add up in one tensor, a row a segment.
enum Column : std::size_t {
  kDifferent,
  kUnordered,
  kLargest,
  kWorst,
  kValueA,
  kValueB,
  kSumSquares,
  kReference,
  kColumns
};

/// The next largest difference replaces the one that a row or array holds; the first that is no number stays.
bool is_worse(double difference, double than) {
  return !std::isnan(than) && (std::isnan(difference) || difference > than);
}

template <typename T>
void note_difference(double* row, std::int64_t element, T a, T b) {
  const auto x = static_cast<double>(a), y = static_cast<double>(b);
  const double difference = std::abs(x - y);
  row[kUnordered] += std::isnan(difference) ? 1 : 0;
  // The first one counts even with a difference of 0: 0 and -0 have other bits.
  if (row[kDifferent] == 0 || is_worse(difference, row[kLargest])) {
    row[kLargest] = difference, row[kWorst] = static_cast<double>(element);
    row[kValueA] = x, row[kValueB] = y;
  }
  row[kDifferent] += 1;
  row[kSumSquares] += difference * difference;
}

template <typename T>
void compare_blocks(double* row, std::int64_t begin, std::span<const T> a, const TensorView& other) {
  const T* b = other.data<T>();
  constexpr std::size_t kLanes = 8;
  double sums[kLanes] = {};
  for (std::size_t i = 0; i < a.size(); ++i) {
    const auto x = static_cast<double>(a[i]);
    sums[i % kLanes] += x * x;
  }
  for (const double s : sums) row[kReference] += s;
  if (std::memcmp(a.data(), b, a.size_bytes()) == 0) return;
  for (std::size_t i = 0; i < a.size(); ++i)
    if (std::memcmp(&a[i], &b[i], sizeof(T)) != 0)
      note_difference(row, begin + static_cast<std::int64_t>(i), a[i], b[i]);
}

std::string type_of(const SavedArray& a) { return fmt::format("{} {}", name_of(a.dtype), a.shape.str()); }

bool same_pieces(const SavedArray& a, const SavedArray& b) {
  return std::equal(a.pieces.begin(), a.pieces.end(), b.pieces.begin(), b.pieces.end(),
                    [](const auto* x, const auto* y) {
                      return x->begin == y->begin && x->end == y->end && x->checksum == y->checksum;
                    });
}

void append_segments(std::vector<Segment>& segments, std::size_t place, const SavedArray& a, const SavedArray& b) {
  for (std::size_t i = 0, j = 0; i < a.pieces.size() && j < b.pieces.size();) {
    const ManifestTensor &x = *a.pieces[i], &y = *b.pieces[j];
    const std::int64_t begin = std::max(x.begin, y.begin), end = std::min(x.end, y.end);
    if (begin < end) segments.push_back({place, &x, &y, begin, end});
    if (x.end <= y.end) ++i;
    if (y.end <= x.end) ++j;
  }
}

/// Compares a segment block by block.
void compare_segment(const Segment& s, OpenFiles& files_a, OpenFiles& files_b, const Block& block_a,
                     const Block& block_b, double* row) {
  for (std::int64_t at = s.begin; at < s.end;) {
    const std::int64_t n = std::min(s.end - at, block_a.capacity(s.a->dtype));
    const TensorView a = block_a.elements(s.a->dtype, n), b = block_b.elements(s.b->dtype, n);
    files_a.read(*s.a, {at, a});
    files_b.read(*s.b, {at, b});
    with_elements(a, [&](auto elements) { compare_blocks(row, at, elements, b); });
    at += n;
  }
}

void merge(ArrayDifference& d, const double* row) {
  if (row[kDifferent] > 0 && (d.different == 0 || is_worse(row[kLargest], d.largest))) {
    d.largest = row[kLargest], d.worst = static_cast<std::int64_t>(row[kWorst]);
    d.a = row[kValueA], d.b = row[kValueB];
  }
  d.different += static_cast<std::int64_t>(row[kDifferent]);
  d.unordered += static_cast<std::int64_t>(row[kUnordered]);
  d.sum_squares += row[kSumSquares];
  d.reference += row[kReference];
}

/// Puts every array of both in one of the lists, and what must be read into segments.
std::vector<Segment> match(const std::vector<SavedArray>& all_a, const std::vector<SavedArray>& all_b,
                           CheckpointDifference& result) {
  std::unordered_map<std::string, const SavedArray*> rest;
  for (const SavedArray& b : all_b) rest.emplace(b.title(), &b);
  std::vector<Segment> segments;
  for (const SavedArray& a : all_a) {
    const auto found = rest.find(a.title());
    if (found == rest.end()) {
      result.mismatches.push_back({a.title(), type_of(a), ""});
      continue;
    }
    const SavedArray& b = *found->second;
    rest.erase(found);
    if (a.shape != b.shape || a.dtype != b.dtype) {
      result.mismatches.push_back({a.title(), type_of(a), type_of(b)});
      continue;
    }
    if (!same_pieces(a, b)) append_segments(segments, result.arrays.size(), a, b);
    result.arrays.push_back({.name = a.name, .role = a.role, .dtype = a.dtype, .shape = a.shape});
  }
  for (const SavedArray& b : all_b)
    if (rest.contains(b.title())) result.mismatches.push_back({b.title(), "", type_of(b)});
  std::sort(segments.begin(), segments.end(), [](const Segment& x, const Segment& y) {
    return std::tie(x.a->file, x.array, x.begin) < std::tie(y.a->file, y.array, y.begin);
  });
  return segments;
}

}  // namespace

double ArrayDifference::relative() const {
  if (equal()) return 0;
  if (reference == 0 && sum_squares > 0) return std::numeric_limits<double>::infinity();
  return sum_squares == 0 ? 0 : std::sqrt(sum_squares / reference);
}

bool CheckpointDifference::equal() const {
  return mismatches.empty() && std::all_of(arrays.begin(), arrays.end(), [](const auto& a) { return a.equal(); });
}

CheckpointDifference compare_checkpoints(Communicator& comm, const ComparedCheckpoint& a, const ComparedCheckpoint& b) {
  CheckpointDifference result;
  const std::vector<Segment> segments = match(a.arrays, b.arrays, result);
  const Tensor table({}, DType::F64, {static_cast<std::int64_t>(segments.size()), kColumns});
  double* const rows = table.view().data<double>();
  run_together(comm, [&] {
    std::vector<std::int64_t> bytes;
    for (const Segment& s : segments)
      bytes.push_back((s.end - s.begin) * static_cast<std::int64_t>(size_of(s.a->dtype)));
    const auto [begin, end] = share_of(bytes, comm.rank(), comm.size());
    OpenFiles files_a(a.path), files_b(b.path);
    const Block block_a(kBlockBytes / 2), block_b(kBlockBytes / 2);
    for (std::size_t i = begin; i < end; ++i)
      compare_segment(segments[i], files_a, files_b, block_a, block_b, rows + i * kColumns);
  });
  // Every row is one rank's and zero elsewhere, so that the sum is that rank's numbers.
  if (!segments.empty()) comm.all_reduce(table);
  std::vector<std::size_t> order(segments.size());
  for (std::size_t i = 0; i < order.size(); ++i) order[i] = i;
  std::sort(order.begin(), order.end(), [&](std::size_t x, std::size_t y) {
    return std::tie(segments[x].array, segments[x].begin) < std::tie(segments[y].array, segments[y].begin);
  });
  for (const std::size_t i : order) merge(result.arrays[segments[i].array], rows + i * kColumns);
  return result;
}

}  // namespace emox
