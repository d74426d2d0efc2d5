// A token file read whole: every id, its document index, and checksums that were recorded before.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "data/loader/identity.h"

namespace emox {

struct VerifiedFile {
  FileIdentity identity;
  std::string whole;                  ///< fingerprint of all of its tokens
  std::vector<std::string> problems;  ///< of the file by itself: none if it is sound
};

/// Called with the number of bytes that have been read since the last call.
using ReadObserver = std::function<void(std::int64_t bytes)>;

/// Reads every token (ids are compared with the vocabulary; vocab_size 0: only that they are not negative) and the
/// whole document index, if there is one. Throws UsageError where the file is none of tokens; IoError when it cannot be
/// read.
VerifiedFile verify_file(const std::filesystem::path& path, std::int64_t vocab_size, TokenWidth width,
                         const ReadObserver& observer = {});

/// FILE.identity.json: what a token file was when somebody recorded it.
std::filesystem::path record_path(const std::filesystem::path& token_file);
/// Throws IoError.
void write_record(const std::filesystem::path& token_file, const VerifiedFile& verified);
/// How the file differs from its record; nothing if it does not, or has none. UsageError if the record cannot be read.
std::optional<std::string> record_difference(const std::filesystem::path& token_file, const VerifiedFile& verified);
bool has_record(const std::filesystem::path& token_file);

}  // namespace emox
