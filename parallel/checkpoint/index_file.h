// index.h5: the whole model as one tree, for people and tools (h5ls -r, h5dump, h5py). Experts are external links to
// their groups in the shards, whole arrays are external links too, arrays in several pieces are virtual datasets. Names
// of files are relative, so that a checkpoint can be moved. Loading never uses it: a virtual dataset whose source is
// missing reads as zeros.
#pragma once

#include <filesystem>

#include "parallel/checkpoint/manifest.h"

namespace emox {

inline constexpr const char* kIndexFileName = "index.h5";

/// Writes it for these pieces, which make whole arrays, and syncs it. IoError when it cannot be written.
void write_index(const std::filesystem::path& path, const Manifest& manifest);

/// IoError unless every array of the manifest is in the checkpoint's index and every link and source of it leads to the
/// dataset that the manifest names, with its shape. The files' checksums must have been verified.
void check_index(const std::filesystem::path& checkpoint, const Manifest& manifest);

}  // namespace emox
