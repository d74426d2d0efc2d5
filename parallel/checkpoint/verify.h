// Whether the files of a checkpoint are what its manifest says. IoError names the file.
#pragma once

#include <filesystem>

#include "parallel/checkpoint/manifest.h"

namespace emox {

/// The file is there and has its size.
void check_file_size(const std::filesystem::path& checkpoint, const ManifestFile& file);
/// The file has its checksum.
void check_file_content(const std::filesystem::path& checkpoint, const ManifestFile& file);

}  // namespace emox
