// Whether pieces make whole arrays: a part of manifest.h.
#include "parallel/checkpoint/manifest.h"

#include <algorithm>
#include <string_view>
#include <tuple>
#include <unordered_map>

#include "parallel/checkpoint/layout.h"
#include "runtime/core/error.h"

namespace emox {
namespace {

using Holder = std::function<std::string(const ManifestTensor&)>;
using Pieces = std::span<const ManifestTensor* const>;

std::string title(const ManifestTensor& t) { return fmt::format("{} ({}) {}", t.name, t.role, t.shape.str()); }

bool same_array(const ManifestTensor& a, const ManifestTensor& b) { return a.name == b.name && a.role == b.role; }

// These run for every piece, so texts are made only for the error.

/// Two pieces of an array, in order: the second begins where the first ends.
void check_neighbours(const ManifestTensor& a, const ManifestTensor& b, const Holder& holder) {
  if (a.shape != b.shape || a.dtype != b.dtype)
    fail<IoError>("{} ({}) is {} {} on {}, {} {} on {}", a.name, a.role, name_of(a.dtype), a.shape.str(), holder(a),
                  name_of(b.dtype), b.shape.str(), holder(b));
  const bool both_empty = a.begin == a.end && b.begin == b.end;
  if (b.begin < a.end || both_empty)
    fail<IoError>("{}: elements [{}, {}) are on {} and again on {}", title(a), b.begin, std::min(a.end, b.end),
                  holder(a), holder(b));
  if (b.begin > a.end)
    fail<IoError>("{}: elements [{}, {}) are nowhere; {} ends before them, {} begins after them", title(a), a.end,
                  b.begin, holder(a), holder(b));
}

/// The pieces of one array, in order.
void check_array(Pieces pieces, const Holder& holder) {
  const ManifestTensor &first = *pieces.front(), &last = *pieces.back();
  if (first.begin != 0)
    fail<IoError>("{}: elements [0, {}) are nowhere; {} begins after them", title(first), first.begin, holder(first));
  for (std::size_t i = 1; i < pieces.size(); ++i) check_neighbours(*pieces[i - 1], *pieces[i], holder);
  if (last.end != last.shape.numel())
    fail<IoError>("{}: elements [{}, {}) are nowhere; {} ends before them", title(last), last.end, last.shape.numel(),
                  holder(last));
}

/// One piece of each array of one parameter.
void check_parameter(Pieces arrays, const Holder& holder) {
  const auto find = [&](std::string_view role) {
    const auto at = std::find_if(arrays.begin(), arrays.end(), [&](const auto* a) { return a->role == role; });
    return at == arrays.end() ? nullptr : *at;
  };
  const ManifestTensor *weight = find("weight"), *mean = find("exp_avg"), *square = find("exp_avg_sq");
  const ManifestTensor& some = *arrays.front();
  if (weight == nullptr) fail<IoError>("{} has an {} ({}) but no weight", some.name, some.role, holder(some));
  if ((mean == nullptr) != (square == nullptr)) {
    const ManifestTensor& one = mean == nullptr ? *square : *mean;
    fail<IoError>("{} has an {} ({}) but no {}", one.name, one.role, holder(one),
                  mean == nullptr ? "exp_avg" : "exp_avg_sq");
  }
  for (const ManifestTensor* moment : {mean, square})
    if (moment != nullptr && moment->shape != weight->shape)
      fail<IoError>("{}: its {} is {} on {}, the weight {} on {}", moment->name, moment->role, moment->shape.str(),
                    holder(*moment), weight->shape.str(), holder(*weight));
}

/// Different arrays must not share a path, for they may come to lie in one file.
void check_places(Pieces arrays) {
  std::unordered_map<std::string, const ManifestTensor*> places;
  for (const ManifestTensor* a : arrays) {
    const auto [at, added] = places.emplace(dataset_path(a->name, a->role), a);
    if (!added)
      fail<IoError>("{} ({}) and {} ({}) have one place in a checkpoint, {}: rename one", at->second->name,
                    at->second->role, a->name, a->role, at->first);
  }
}

/// Calls `use` with every run of neighbours that are alike.
template <typename Alike, typename Use>
void for_each_run(Pieces pieces, const Alike& alike, const Use& use) {
  for (std::size_t begin = 0, end = 0; begin < pieces.size(); begin = end) {
    while (end < pieces.size() && alike(*pieces[begin], *pieces[end])) ++end;
    use(pieces.subspan(begin, end - begin));
  }
}

}  // namespace

std::vector<const ManifestTensor*> in_order(std::span<const ManifestTensor> pieces) {
  std::vector<const ManifestTensor*> sorted;
  sorted.reserve(pieces.size());
  for (const ManifestTensor& t : pieces) sorted.push_back(&t);
  // `end` and `file` only so that equal begins, an error, are reported alike every time.
  const auto key = [](const ManifestTensor& t) { return std::tie(t.name, t.role, t.begin, t.end, t.file); };
  std::sort(sorted.begin(), sorted.end(), [&](const auto* a, const auto* b) { return key(*a) < key(*b); });
  return sorted;
}

void check_coverage(std::span<const ManifestTensor> pieces, const Holder& holder) {
  const std::vector<const ManifestTensor*> sorted = in_order(pieces);
  std::vector<const ManifestTensor*> arrays;  // one piece of each
  for_each_run(sorted, same_array, [&](Pieces run) {
    check_array(run, holder);
    arrays.push_back(run.front());
  });
  for_each_run(
      arrays, [](const ManifestTensor& a, const ManifestTensor& b) { return a.name == b.name; },
      [&](Pieces run) { check_parameter(run, holder); });
  check_places(arrays);
}

}  // namespace emox
