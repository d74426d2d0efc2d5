// A smaller model cut out of a checkpoint: the kept experts, renumbered, and everything else (spec 6.1).
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>

#include "launch/config/recipe.h"
#include "launch/run/session.h"
#include "model/modularity/expert_subset.h"
#include "parallel/checkpoint/manifest.h"

namespace emox {

struct CutSubset {
  std::filesystem::path checkpoint;  ///< what was written
  std::int64_t tensors = 0;
  std::int64_t bytes = 0;  ///< of their elements
  /// What was read of the whole model for them, by all ranks together: those files, of how many, each once and whole.
  std::int64_t bytes_read = 0, files_read = 0, files = 0;
};

/// The recipe of a run in `directory` with so many experts as the subset keeps: top_k and pools fit into them (pools by
/// label, which are of numbers that the experts no longer have, are off), experts lie in blocks over no more ranks than
/// there are experts. UsageError that names `source`, the subset's file, when the layers keep different numbers: a
/// recipe has one.
Recipe recipe_of_subset(Recipe r, const ExpertSubset& subset, const std::string& source,
                        const std::filesystem::path& directory);

/// Collective. Makes the run directory `output` (new or empty, else UsageError) with recipe.ini and one checkpoint of
/// the same step: kept experts with their moments, router rows, selection bias and all other tensors, byte for byte. It
/// can be evaluated, resumed on any ranks, or warm-started from. Of `checkpoint`, only the files that hold these are
/// verified and read; every rank holds its share of the result. IoError, on all ranks, when reading or writing fails.
CutSubset cut_subset(Session& session, const std::filesystem::path& checkpoint, const ExpertSubset& subset,
                     const std::string& source, const std::filesystem::path& output);

}  // namespace emox
