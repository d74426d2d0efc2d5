// The data of a run: where its sources are, what is in them, and whether that is what a checkpoint was trained on.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "data/loader/identity.h"
#include "launch/config/recipe.h"
#include "launch/run/session.h"
#include "parallel/checkpoint/manifest.h"

namespace emox {

/// `data.token_type` as the data room calls it.
TokenWidth token_width(const DataConfig& data);
/// The sources of a recipe, as they are written there.
std::vector<SourceSpec> sources_of(const DataConfig& data);

struct RunData {
  std::vector<SourceSpec> sources;   ///< their paths are where they were found
  std::vector<std::string> missing;  ///< a line for each source that is not there
  DataIdentity identity;             ///< of the same sources
};

/// Collective. Rank 0 finds the files of the sources; their reading is dealt out, so that each file is read by one
/// rank, and by one of every node that has a copy of its own (node_files.h). All ranks get the same result, or the same
/// UsageError. Relative paths are looked for below `bases` in turn
/// (empty: the working directory). Without `parts.train` a source may be missing, and its training files are not looked
/// at.
RunData find_data(Session& session, const Recipe& recipe, const std::vector<std::filesystem::path>& bases,
                  const DataParts& parts = {});
/// What find_data finds, by one rank alone: for what is compared before a run is begun.
DataIdentity identify_data(const Recipe& recipe, const std::vector<std::filesystem::path>& bases);
/// For a run in recipe.run.dir: below the working directory, then `look_in` (where the recipe is); for one that is
/// resumed also where it found them, its directory and those above it.
RunData find_training_data(Session& session, const Recipe& recipe, const std::vector<std::filesystem::path>& look_in);
/// For a checkpoint: where its run found them, then the working directory, then the run's directory and those above it.
/// The sources are those of `recipe`. Nothing is read if both parts are left out.
RunData find_data_of(Session& session, const Recipe& recipe, const std::filesystem::path& checkpoint,
                     const Manifest& manifest, const DataParts& parts);

/// The directories that find_data_of looks below.
std::vector<std::filesystem::path> data_bases(const std::filesystem::path& checkpoint, const Manifest& manifest);

/// What the checkpoint was trained on. False, and nothing, if it does not say (it was saved by an older emox). IoError
/// if that cannot be read.
bool data_identity_of(const Manifest& manifest, DataIdentity& identity);

/// Labels of sources whose text is not what it was, each once.
struct OtherText {
  std::vector<std::string> train, held_out;
  bool empty() const { return train.empty() && held_out.empty(); }
};

/// Throws UsageError naming file, difference and what to do if the data are not what the checkpoint was trained on,
/// unless run.change names data.source: then the labels are returned whose text is another one. Says so in the log, and
/// accepts, if the checkpoint does not know. A source that only one of them has is not looked at.
OtherText check_same_data(const Manifest& checkpoint, const DataIdentity& now, const RunConfig& run, Log& log);

/// What a checkpoint of a run keeps that goes on from `found` with `now`: held-out text that was not found now is still
/// the run's.
DataIdentity identity_to_keep(const Manifest& found, const DataIdentity& now);

/// On one rank. Throws UsageError if the newest checkpoint in a run's directory that can be read knows that it was
/// trained on other data, or would have been evaluated on others; one that does not know, or none, is accepted.
void check_data_of_run(const std::filesystem::path& run, const DataIdentity& now);

inline constexpr const char* kDataAsTrained = "as trained";
/// kDataAsTrained, "changed: ..." or "unknown: ...": whether what is read for a checkpoint is what its run had.
std::string compare_with_training(const Manifest& checkpoint, const DataIdentity& now, const DataParts& parts);

}  // namespace emox
