// From the pieces that a caller gives to the datasets that a file holds.
#pragma once

#include <span>
#include <string>
#include <vector>

#include "parallel/checkpoint/checkpoint.h"

namespace emox {

/// ShapeError unless the piece is one: a name and role that a checkpoint can hold, a range inside its array, and so
/// many elements of host memory.
void check_piece(const CheckpointPiece& piece);

/// Elements [begin, end) of the piece's array; the piece must have them.
TensorView elements_of(const CheckpointPiece& piece, std::int64_t begin, std::int64_t end);

/// A dataset that is to be written.
struct Stretch {
  ManifestTensor entry;
  std::vector<TensorView> blocks;  ///< its elements, one block after another
};

/// Of the elements of all blocks.
std::string checksum_of_blocks(std::span<const TensorView> blocks);

/// The pieces, checked, ordered, those that adjoin each other merged; without checksums. Empty pieces of arrays that
/// have elements vanish.
std::vector<Stretch> stretches_of(std::span<const CheckpointPiece> pieces, const std::string& file);

}  // namespace emox
