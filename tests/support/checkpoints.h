// Checkpoints, for tests: whole ones in memory, pieces by the simplest rules, and looking with one rank.
#pragma once

#include <gtest/gtest.h>

#include <filesystem>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "parallel/checkpoint/checkpoint.h"

namespace emox::test {

/// The same arrays with the same elements, bit for bit, however each checkpoint is cut into pieces and files.
::testing::AssertionResult same_arrays(const std::filesystem::path& checkpoint, const std::filesystem::path& other);

/// On one rank.
std::optional<CheckpointInfo> latest_in(const std::filesystem::path& directory, Log* log = nullptr);
Manifest verified(const std::filesystem::path& checkpoint);

/// Adds the arrays of a parameter, each one whole piece; null moments are left out.
void add_whole(std::vector<CheckpointPiece>& pieces, const std::string& name, const TensorView& weight,
               const TensorView& exp_avg = {}, const TensorView& exp_avg_sq = {});

/// This rank's share of pieces that all ranks hold alike (the same list on each). Experts, never cut, and other tensors
/// go, largest first, to the rank with the fewest bytes so far.
std::vector<CheckpointPiece> divide_among_ranks(std::span<const CheckpointPiece> pieces, int rank, int size);

}  // namespace emox::test
