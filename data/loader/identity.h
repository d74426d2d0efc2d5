// What the data of a run are, by content: so that a run goes on with them wherever they are, and with nothing else.
#pragma once

#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <vector>

#include "data/format/token_file.h"
#include "data/loader/source_files.h"

namespace emox {

struct FileIdentity {
  std::string path;             ///< where it was read
  TokenLayout layout;           ///< size, element type, tokens
  std::int64_t documents = -1;  ///< by its document index; -1: it has none
  std::string fingerprint;      ///< of its tokens: data/format/fingerprint.h
  std::string index;            ///< of the index; empty: none
  std::string files;            ///< of the source file of each document (heldout.h); empty: none, or not looked at
};

struct SourceIdentity {
  std::string label;
  double weight = 1;
  std::string path;  ///< as in the recipe
  std::string base;  ///< directory that a relative path was found below
  std::vector<FileIdentity> train, held_out, tune;
};

struct DataIdentity {
  std::vector<SourceIdentity> sources;
};

/// The key below which checkpoints (Manifest::extra) and run.json hold to_json(DataIdentity).
inline constexpr const char* kDataKey = "data";

/// Looks at a token file and its document index, and checks that a headerless one is what it is taken for. Reads all
/// of a small file and samples of a large one. `label` is its source's, for errors; empty: none. Throws UsageError as
/// TokenSample and TokenFile do.
FileIdentity identify_file(const std::filesystem::path& path, const std::string& label, std::int64_t vocab_size,
                           TokenWidth width);

/// UsageError unless the document index of the file, if it has one, begins with its first token and ends with its last.
void require_index_covers(const FileIdentity& file);

nlohmann::json to_json(const FileIdentity& file);
FileIdentity file_identity_from(const nlohmann::json& json);
nlohmann::json to_json(const DataIdentity& data);
/// What to_json made. IoError when it is something else.
DataIdentity data_identity_from(const nlohmann::json& json);

/// Which parts of the sources are compared.
struct DataParts {
  bool train = true, held_out = true;  ///< held_out: that for choosing settings, too
};
/// How the content of two files differs, or nothing; the text goes on after a file's name: "has 5 tokens, not 4". Which
/// source file a document is from is compared where both know it.
std::optional<std::string> file_difference(const FileIdentity& before, const FileIdentity& now);
struct ContentDifference {
  std::string label;      ///< of the source
  std::string text;       ///< naming source, file and difference
  bool training = false;  ///< of its training text
  bool is_new = false;    ///< `before` has no such source
};
/// How the content of the sources of `now` differs from what `before` had under their labels. A part that only one of
/// them has is no difference: files may be away that nothing is evaluated on any more, or be there now.
std::vector<ContentDifference> content_differences(const DataIdentity& before, const DataIdentity& now,
                                                   const DataParts& parts = {});
/// A line for every training file that has the same tokens as a held-out one: a loss on that would not be one of unseen
/// text.
std::vector<std::string> training_text_that_is_held_out(const DataIdentity& data);
/// Held-out parts that `now` lacks and `before` has under the same label are taken from there: files that are away for
/// a while are compared when they are there again.
void keep_parts_not_found(DataIdentity& now, const DataIdentity& before);

}  // namespace emox
