// Names of directories, files and datasets, and how an array's elements lie in a dataset. Nothing here touches a file.
#pragma once

#include <array>
#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "runtime/core/shape.h"

namespace emox {

/// step-00000123
std::string step_directory_name(std::int64_t step);
/// The step of such a name; nothing for any other name, an unfinished step-00000123.tmp included.
std::optional<std::int64_t> step_of_directory(std::string_view name);
/// Names the checkpoint that was completed last: a symbolic link beside it.
inline constexpr const char* kLatestName = "latest";
/// True for what a crashed save or removal leaves.
bool is_unfinished(std::string_view name);
/// The checkpoints in a directory, newest first, and links with the name of one. Throws filesystem_error (std).
std::vector<std::filesystem::path> list_checkpoints(const std::filesystem::path& directory);
/// shard-00000-of-00002.h5
std::string shard_file_name(int rank, int size);
inline constexpr const char* kIndexFileName = "index.h5";

/// Whether a checkpoint can hold an array of this name: it becomes a path in an HDF5 file.
bool is_tensor_name(std::string_view name);
/// weight, exp_avg, exp_avg_sq
bool is_role(std::string_view role);

/// "model.layers.0.mlp.experts.3" for whatever belongs to that expert, otherwise the name itself.
std::string_view unit_of(std::string_view name);

/// Where an array lies in its HDF5 file: the weight at its name with '/' for '.', a moment beside it. So an expert is
/// one group with everything that belongs to it: /model/layers/0/mlp/experts/3/gate_proj/{weight,exp_avg,exp_avg_sq}.
std::string dataset_path(const std::string& name, const std::string& role);

/// Where elements [begin, ...) of an array lie when others of the array lie in the same file, in front of them. No
/// array's own path ends so.
std::string later_dataset_path(const std::string& name, const std::string& role, std::int64_t begin);

/// Elements [begin, end) of a row-major array as boxes of whole rows, planes, ...: HDF5 selects boxes.
struct Box {
  std::array<std::int64_t, Shape::kMaxRank> start{}, count{};
  std::int64_t begin = 0, end = 0;  ///< its elements
};
/// At most 2 * rank - 1 of them (one for a scalar), in the order of the elements.
std::vector<Box> boxes_of(const Shape& shape, std::int64_t begin, std::int64_t end);

}  // namespace emox
