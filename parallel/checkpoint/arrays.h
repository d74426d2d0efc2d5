// The arrays of a checkpoint as its manifest tells them, without a model: which pieces make one, which expert has it,
// and the families that they form (the same matrix of every layer and expert).
#pragma once

#include <cstddef>
#include <cstdint>
#include <limits>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "parallel/checkpoint/manifest.h"

namespace emox {

/// A parameter's weight or one of its moments.
struct SavedArray {
  std::string name, role;
  DType dtype = DType::F32;
  Shape shape;
  /// In the order of their elements. They belong to the manifest, which must outlive this.
  std::vector<const ManifestTensor*> pieces;

  std::int64_t elements() const { return shape.numel(); }
  std::int64_t bytes() const { return elements() * static_cast<std::int64_t>(size_of(dtype)); }
  /// "NAME" of a weight, "NAME (ROLE)" of a moment.
  std::string title() const;
};

/// All of them, ordered by name (layer 2 before layer 10) and role.
std::vector<SavedArray> arrays_of(const Manifest& manifest);

/// The names of the files that hold elements of these arrays.
std::vector<std::string> files_of(const std::vector<SavedArray>& arrays);

/// {2, 7} for model.layers.2.mlp.experts.7.up_proj.weight; nothing for what no expert has.
struct ExpertPlace {
  std::int64_t layer = 0, expert = 0;
};
std::optional<ExpertPlace> expert_of(std::string_view name);

/// Numbers in names compare by value.
bool natural_less(std::string_view a, std::string_view b);

inline constexpr std::int64_t kAllExperts = std::numeric_limits<std::int64_t>::max();

/// The name with * for its numbers: model.layers.*.mlp.experts.*.up_proj.weight. Experts numbered from `routed_experts`
/// on, the shared ones, keep their number.
std::string family_of(std::string_view name, std::int64_t routed_experts = kAllExperts);

/// Arrays of one family, role, shape and type.
struct ArrayFamily {
  std::string pattern, role;
  DType dtype = DType::F32;
  Shape shape;
  std::vector<std::size_t> members;  ///< places in the list of arrays
  std::string count;                 ///< "4x31" where that many layers have that many experts each, else "123"
};

/// In the order of their first members.
std::vector<ArrayFamily> families_of(const std::vector<SavedArray>& arrays, std::int64_t routed_experts = kAllExperts);

/// An array that a model needs.
struct WantedArray {
  std::string name;
  std::string role;  ///< "weight", "exp_avg", "exp_avg_sq"
  Shape shape;
};

/// Every difference between the saved arrays and the wanted ones, for people, a line a kind: another shape (both are
/// given), not saved, not wanted. Arrays that differ in the numbers in their names alone, and differ in the same way,
/// share a line and are counted. Saved roles that nobody wants do not count. At most `most_lines` lines, the last of
/// which then says how many are left out. Empty: every wanted array can be loaded, and nothing is left over.
std::vector<std::string> describe_other_arrays(std::span<const ManifestTensor> saved,
                                               std::span<const WantedArray> wanted, std::size_t most_lines = 12);

}  // namespace emox
