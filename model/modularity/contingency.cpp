#include "model/modularity/contingency.h"

#include <algorithm>
#include <cmath>
#include <numbers>

#include "runtime/core/idx.h"

namespace emox {
namespace {

std::int64_t occupied(const std::vector<std::int64_t>& counts) {
  return std::count_if(counts.begin(), counts.end(), [](std::int64_t n) { return n > 0; });
}

double ratio_bits(double part, double whole) { return std::log2(whole / part); }

}  // namespace

Contingency::Contingency(std::int64_t rows, std::int64_t columns)
    : rows_(idx(rows), 0), columns_(idx(columns), 0), cells_(idx(rows * columns), 0) {}

void Contingency::add(std::int64_t row, std::int64_t column, std::int64_t count) {
  rows_[idx(row)] += count;
  columns_[idx(column)] += count;
  cells_[idx(row) * columns_.size() + idx(column)] += count;
  total_ += count;
}

double Contingency::entropy(const std::vector<std::int64_t>& counts) const {
  double sum = 0;
  for (const std::int64_t n : counts)
    if (n > 0)
      sum += static_cast<double>(n) / static_cast<double>(total_) *
             ratio_bits(static_cast<double>(n), static_cast<double>(total_));
  return sum;
}

double Contingency::information() const { return row_entropy() + column_entropy() - entropy(cells_); }

double Contingency::miller_madow() const {
  const std::int64_t surplus = occupied(rows_) + occupied(columns_) - occupied(cells_) - 1;
  return static_cast<double>(surplus) / (2 * static_cast<double>(total_)) / std::numbers::ln2;
}

double Contingency::row_surprise(std::int64_t row) const {
  return ratio_bits(static_cast<double>(rows_[idx(row)]), static_cast<double>(total_));
}

double Contingency::column_surprise(std::int64_t column) const {
  return ratio_bits(static_cast<double>(columns_[idx(column)]), static_cast<double>(total_));
}

double Contingency::pointwise(std::int64_t row, std::int64_t column) const {
  const auto cell = static_cast<double>(cells_[idx(row) * columns_.size() + idx(column)]);
  return row_surprise(row) + column_surprise(column) - ratio_bits(cell, static_cast<double>(total_));
}

}  // namespace emox
