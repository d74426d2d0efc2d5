// Statistics of arrays; compare.cpp and export.cpp have the rest of inspect.h.
#include "parallel/checkpoint/inspect.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <unordered_map>
#include <utility>

#include "parallel/checkpoint/open_files.h"
#include "parallel/comm/together.h"

namespace emox {
namespace {

namespace fs = std::filesystem;
/// What the ranks add up in one tensor, a row a dataset.
enum Tally : std::size_t { kZeros, kNotFinites, kSum, kSquares, kLeast, kMost, kTallies };

template <typename T>
void add_to(double* row, std::span<const T> elements) {
  // Lanes, so that sums do not wait for each other; their order is always the same.
  constexpr std::size_t kLanes = 8;
  double sums[kLanes] = {}, squares[kLanes] = {};
  double least = row[kLeast], most = row[kMost];
  std::int64_t zeros = 0, not_finite = 0;
  for (std::size_t i = 0; i < elements.size(); ++i) {
    const auto x = static_cast<double>(elements[i]);
    sums[i % kLanes] += x;
    squares[i % kLanes] += x * x;
    least = x < least ? x : least;
    most = x > most ? x : most;
    zeros += x == 0 ? 1 : 0;
    not_finite += std::isfinite(x) ? 0 : 1;
  }
  for (const double s : sums) row[kSum] += s;
  for (const double s : squares) row[kSquares] += s;
  row[kLeast] = least, row[kMost] = most;
  row[kZeros] += static_cast<double>(zeros);
  row[kNotFinites] += static_cast<double>(not_finite);
}

}  // namespace

std::vector<ArrayStatistics> measure_arrays(Communicator& comm, const fs::path& checkpoint,
                                            const std::vector<SavedArray>& arrays) {
  std::vector<const ManifestTensor*> datasets;
  for (const SavedArray& a : arrays) datasets.insert(datasets.end(), a.pieces.begin(), a.pieces.end());
  datasets = by_file(std::move(datasets));
  const Tensor table({}, DType::F64, {static_cast<std::int64_t>(datasets.size()), kTallies});
  double* const rows = table.view().data<double>();
  run_together(comm, [&] {
    const auto [begin, end] = share_of_datasets(datasets, comm);
    OpenFiles files(checkpoint);
    const Block block(kBlockBytes);
    for (std::size_t i = begin; i < end; ++i) {
      double* const row = rows + i * kTallies;
      row[kLeast] = std::numeric_limits<double>::infinity(), row[kMost] = -row[kLeast];
      files.read_whole(*datasets[i], block, [&](const TensorView& view) {
        with_elements(view, [&](auto elements) { add_to(row, elements); });
      });
    }
  });
  // Every row is one rank's and zero elsewhere, so that the sum is that rank's numbers.
  if (!datasets.empty()) comm.all_reduce(table);
  std::unordered_map<const ManifestTensor*, const double*> row_of;
  for (std::size_t i = 0; i < datasets.size(); ++i) row_of.emplace(datasets[i], rows + i * kTallies);
  std::vector<ArrayStatistics> statistics;
  for (const SavedArray& a : arrays) {
    ArrayStatistics s{.elements = a.elements(), .least = std::numeric_limits<double>::infinity()};
    s.most = -s.least;
    for (const ManifestTensor* piece : a.pieces) {
      const double* row = row_of.at(piece);
      s.zeros += static_cast<std::int64_t>(row[kZeros]);
      s.not_finite += static_cast<std::int64_t>(row[kNotFinites]);
      s.sum += row[kSum];
      s.sum_squares += row[kSquares];
      s.least = std::min(s.least, row[kLeast]), s.most = std::max(s.most, row[kMost]);
    }
    if (s.least > s.most) s.least = s.most = 0;
    statistics.push_back(s);
  }
  return statistics;
}

double ArrayStatistics::l2() const { return std::sqrt(sum_squares); }

double ArrayStatistics::rms() const {
  return elements == 0 ? 0 : std::sqrt(sum_squares / static_cast<double>(elements));
}

}  // namespace emox
