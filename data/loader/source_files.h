// Which files a source of a recipe means, and where they are.
#pragma once

#include <filesystem>
#include <span>
#include <string>
#include <vector>

#include "data/loader/loader.h"

namespace emox {

struct SourceFiles {
  SourceSpec spec;      ///< its path is where the source was found: that of the recipe, or below another directory
  std::string written;  ///< its path as the recipe has it
  std::filesystem::path base;  ///< directory that a relative path was found below; empty: the path is absolute
  std::vector<std::filesystem::path> train;     ///< in the order in which their tokens are joined
  std::vector<std::filesystem::path> held_out;  ///< none, or heldout.npy
  std::vector<std::filesystem::path> tune;      ///< none, or tune.npy
  std::string missing;                          ///< where it was looked for in vain; empty: it was found
};

/// The token files that a path stands for, sorted by name, each once: the file itself; train.npy of a directory, or all
/// of its *.npy and *.bin files but held-out parts and document indices; or, where nothing has that name, those of
/// every pattern of a list such as part-*.npy,more/{x,y}.bin (wildcards * ? [], alternatives {}, directories too).
/// Throws UsageError beginning with "data.source LABEL" when there is nothing, and says how files are made.
std::vector<std::filesystem::path> training_files(const SourceSpec& source);

/// Looks for the source below each of these directories in turn when its path is relative. UsageError naming all places
/// when it is at none of them; as training_files when it has nothing to train on.
SourceFiles find_source(const SourceSpec& source, std::span<const std::filesystem::path> bases);

/// The same, but nothing is thrown when there is nothing to train on: for what reads held-out parts only.
SourceFiles find_held_out(const SourceSpec& source, std::span<const std::filesystem::path> bases);

}  // namespace emox
