// Names and division of work: which dataset a tensor is, and which rank writes it. Nothing here touches a file.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "parallel/checkpoint/checkpoint.h"

namespace emox {

/// step-00000123
std::string step_directory_name(std::int64_t step);
/// The step of such a name; nothing for any other name, an unfinished step-00000123.tmp included.
std::optional<std::int64_t> step_of_directory(std::string_view name);
/// True for what a crashed save or removal leaves.
bool is_unfinished(std::string_view name);
/// The checkpoints in a directory, newest first.
std::vector<std::filesystem::path> list_checkpoints(const std::filesystem::path& directory);
/// shard-00000-of-00002.h5
std::string shard_file_name(int rank, int size);

/// One array of a tensor: its weight or one of its moments.
struct CheckpointArray {
  std::string name;  ///< the parameter's
  std::string role;  ///< "weight", "exp_avg", "exp_avg_sq"
  TensorView view;
  int writer = 0;  ///< the rank that writes it
};

/// Where an array lies in its HDF5 file: the weight at its name with '/' for '.', a moment beside it. So an expert is
/// one group with everything that belongs to it: /model/layers/0/mlp/experts/3/gate_proj/{weight,exp_avg,exp_avg_sq}.
std::string dataset_path(const std::string& name, const std::string& role);

/// All arrays of the tensors, in their order, without writers. ShapeError when two have one place, a moment's shape is
/// not its weight's, a name cannot be a path, or memory is missing or not on the host.
std::vector<CheckpointArray> arrays_of(std::span<const CheckpointTensor> tensors);

/// Gives every array a writer. An expert is never cut; experts and other tensors go, largest first, to the rank with
/// the fewest bytes so far. The same on every rank.
void divide_among_ranks(std::vector<CheckpointArray>& arrays, int size);

}  // namespace emox
