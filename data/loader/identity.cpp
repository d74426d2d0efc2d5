#include "data/loader/identity.h"

#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <nlohmann/json.hpp>

#include "data/format/fingerprint.h"
#include "data/format/token_sample.h"
#include "data/loader/heldout.h"
#include "runtime/core/error.h"
#include "runtime/core/idx.h"
#include "runtime/core/quoted.h"

namespace emox {
namespace {

using nlohmann::json;

json files_json(const std::vector<FileIdentity>& files) {
  json list = json::array();
  for (const FileIdentity& f : files) list.push_back(to_json(f));
  return list;
}

NpyType type_from(const std::string& name) {
  for (const NpyType type : {NpyType::U2, NpyType::U4, NpyType::I4, NpyType::I8})
    if (name == name_of(type)) return type;
  fail<IoError>("element type '{}'", name);
}

std::vector<FileIdentity> files_from(const json& source, const char* part) {
  std::vector<FileIdentity> files;
  if (source.contains(part))
    for (const json& f : source.at(part)) files.push_back(file_identity_from(f));
  return files;
}

std::string plural(std::int64_t n, const char* what) { return fmt::format("{} {}{}", n, what, n == 1 ? "" : "s"); }

/// The first difference of a part's files, or nothing.
std::optional<std::string> part_difference(const std::vector<FileIdentity>& before,
                                           const std::vector<FileIdentity>& now, const char* what) {
  for (std::size_t i = 0; i < std::min(before.size(), now.size()); ++i)
    if (const auto difference = file_difference(before[i], now[i]))
      return fmt::format("{} {}", now[i].path, *difference);
  if (before.size() == now.size()) return std::nullopt;
  const std::vector<FileIdentity>& longer = before.size() > now.size() ? before : now;
  return fmt::format("{} {}, not {}: {} is {}", what, plural(static_cast<std::int64_t>(now.size()), "file"),
                     before.size(), longer[std::min(before.size(), now.size())].path,
                     before.size() > now.size() ? "missing" : "new");
}

}  // namespace

FileIdentity identify_file(const std::filesystem::path& path, const std::string& label, std::int64_t vocab_size,
                           TokenWidth width) {
  FileIdentity identity;
  identity.path = path.string();
  const StoredFile file(path);
  // Text of an odd length is told to be text, not to be cut off.
  std::vector<std::byte> begin(idx(std::min<std::int64_t>(file.bytes(), 1 << 16)));
  file.read(0, begin);
  require<UsageError>(is_npy(begin) || (!looks_like_text(begin) && !looks_compressed(begin)),
                      "{}{} is {}, not a file of token ids; make token files of it with `emox corpus --text {}={}`, "
                      "and name what that writes",
                      in_source(label), path.string(), looks_compressed(begin) ? "a compressed file" : "text",
                      label.empty() ? "LABEL" : label, path.string());
  identity.layout = token_layout(file, vocab_size, width);
  TokenSample sample(identity.layout, vocab_size);
  identity.fingerprint =
      fingerprint_of(file, identity.layout.offset, [&](std::int64_t at, auto bytes) { sample.add(at, bytes); });
  sample.check(path, width, label);
  const std::filesystem::path index = document_index_path(path);
  std::error_code ignored;
  if (!std::filesystem::exists(index, ignored)) return identity;
  const StoredFile offsets(index);
  const auto header = read_npy_header(offsets);
  require<UsageError>(header && header->count >= 2, "{} is no document index: build it again", index.string());
  identity.documents = header->count - 1;
  identity.index = fingerprint_of(offsets, static_cast<std::int64_t>(header->offset));
  // Training reads tokens only; the intervals of an evaluation depend on which documents are from one file.
  const std::filesystem::path files = document_files_path(path);
  const bool held_out =
      std::find(std::begin(kHeldOutParts), std::end(kHeldOutParts), path.stem()) != std::end(kHeldOutParts);
  if (!held_out || !std::filesystem::exists(files, ignored)) return identity;
  const StoredFile numbers(files);
  const auto list = read_npy_header(numbers);
  require<UsageError>(list && list->count == identity.documents,
                      "{} does not name the sources of the {} documents of {}; build both files again", files.string(),
                      identity.documents, path.string());
  identity.files = fingerprint_of(numbers, static_cast<std::int64_t>(list->offset));
  return identity;
}

void require_index_covers(const FileIdentity& file) {
  if (file.documents < 0) return;
  const std::filesystem::path path = document_index_path(file.path);
  const StoredFile offsets(path);
  const auto header = read_npy_header(offsets);
  require<UsageError>(header && header->count >= 2, "{} is no document index: build it again", path.string());
  const auto offset = [&](std::int64_t i) {
    return read_integers(offsets, header->type, static_cast<std::int64_t>(header->offset), i, 1).front();
  };
  const std::int64_t first = offset(0), last = offset(header->count - 1);
  require<UsageError>(first == 0 && last == file.layout.tokens,
                      "{}: {} offsets from {} to {} do not cover the {} tokens of {}; build both files again",
                      path.string(), header->count, first, last, file.layout.tokens, file.path);
}

json to_json(const FileIdentity& f) {
  json j = {{"path", quoted_text(f.path)},  {"bytes", f.layout.bytes},   {"type", name_of(f.layout.type)},
            {"header", f.layout.header},    {"offset", f.layout.offset}, {"tokens", f.layout.tokens},
            {"fingerprint", f.fingerprint}, {"documents", nullptr},      {"index", nullptr}};
  if (f.documents >= 0) j["documents"] = f.documents, j["index"] = f.index;
  if (!f.files.empty()) j["files"] = f.files;
  return j;
}

FileIdentity file_identity_from(const json& j) {
  try {
    FileIdentity f;
    f.path = unquoted_text(j.at("path").get<std::string>());
    f.layout = {j.at("bytes").get<std::int64_t>(), j.at("header").get<bool>(), type_from(j.at("type")),
                j.at("offset").get<std::int64_t>(), j.at("tokens").get<std::int64_t>()};
    f.fingerprint = j.at("fingerprint");
    if (!j.at("documents").is_null()) f.documents = j.at("documents"), f.index = j.at("index");
    f.files = j.value("files", "");
    return f;
  } catch (const json::exception& e) {
    fail<IoError>("the identity of a token file cannot be read: {}", e.what());
  }
}

json to_json(const DataIdentity& data) {
  json sources = json::array();
  for (const SourceIdentity& s : data.sources) {
    json source = {{"label", quoted_text(s.label)},
                   {"weight", s.weight},
                   {"path", quoted_text(s.path)},
                   {"base", quoted_text(s.base)},
                   {"train", files_json(s.train)}};
    if (!s.held_out.empty()) source["held_out"] = files_json(s.held_out);
    if (!s.tune.empty()) source["tune"] = files_json(s.tune);
    sources.push_back(std::move(source));
  }
  return {{"version", 1}, {"sources", std::move(sources)}};
}

DataIdentity data_identity_from(const json& j) {
  try {
    DataIdentity data;
    for (const json& s : j.at("sources"))
      data.sources.push_back({unquoted_text(s.at("label").get<std::string>()), s.at("weight").get<double>(),
                              unquoted_text(s.at("path").get<std::string>()),
                              unquoted_text(s.at("base").get<std::string>()), files_from(s, "train"),
                              files_from(s, "held_out"), files_from(s, "tune")});
    return data;
  } catch (const json::exception& e) {
    fail<IoError>("the identity of the data cannot be read: {}", e.what());
  } catch (const UsageError& e) {
    fail<IoError>("the identity of the data cannot be read: {}", e.message());
  }
}

std::optional<std::string> file_difference(const FileIdentity& before, const FileIdentity& now) {
  if (before.layout.type != now.layout.type)
    return fmt::format("holds ids of type {}, not {}", name_of(now.layout.type), name_of(before.layout.type));
  if (before.layout.tokens != now.layout.tokens)
    return fmt::format("has {}, not {}", plural(now.layout.tokens, "token"), before.layout.tokens);
  if (before.fingerprint != now.fingerprint)
    return fmt::format("has other tokens (as many; fingerprint {}, not {})", now.fingerprint, before.fingerprint);
  // Whether there is an index does not change the tokens; what reads it fails without one.
  if (before.documents < 0 || now.documents < 0) return std::nullopt;
  if (before.documents != now.documents)
    return fmt::format("has {} by its index, not {}", plural(now.documents, "document"), before.documents);
  if (before.index != now.index) return "has another document index";
  if (!before.files.empty() && !now.files.empty() && before.files != now.files)
    return fmt::format("has other source files of its documents ({})", document_files_path(now.path).string());
  return std::nullopt;
}

std::vector<ContentDifference> content_differences(const DataIdentity& before, const DataIdentity& now,
                                                   const DataParts& parts) {
  std::vector<ContentDifference> all;
  for (const SourceIdentity& is : now.sources) {
    const auto was = std::find_if(before.sources.begin(), before.sources.end(),
                                  [&](const SourceIdentity& s) { return s.label == is.label; });
    if (was == before.sources.end()) {
      all.push_back({is.label, fmt::format("source {} is new", is.label), false, true});
      continue;
    }
    const auto compare = [&](const std::vector<FileIdentity>& a, const std::vector<FileIdentity>& b, const char* what,
                             bool training) {
      if (const auto difference = part_difference(a, b, what))
        all.push_back({is.label, fmt::format("source {}: {}", is.label, *difference), training, false});
    };
    if (parts.train) compare(was->train, is.train, "training text in", true);
    if (!parts.held_out) continue;
    if (!was->held_out.empty() && !is.held_out.empty()) compare(was->held_out, is.held_out, "held-out text in", false);
    if (!was->tune.empty() && !is.tune.empty()) compare(was->tune, is.tune, "held-out text for tuning in", false);
  }
  return all;
}

std::vector<std::string> training_text_that_is_held_out(const DataIdentity& data) {
  std::map<std::string, const FileIdentity*> held_out;
  for (const SourceIdentity& s : data.sources)
    for (const auto* files : {&s.held_out, &s.tune})
      for (const FileIdentity& f : *files) held_out.emplace(f.fingerprint, &f);
  std::vector<std::string> lines;
  for (const SourceIdentity& s : data.sources)
    for (const FileIdentity& f : s.train)
      if (const auto same = held_out.find(f.fingerprint); same != held_out.end())
        lines.push_back(
            fmt::format("source {} trains on {}, which is the same text as the held-out {}: a loss on that is not one "
                        "of unseen text",
                        s.label, f.path, same->second->path));
  return lines;
}

void keep_parts_not_found(DataIdentity& now, const DataIdentity& before) {
  for (SourceIdentity& is : now.sources)
    for (const SourceIdentity& was : before.sources) {
      if (was.label != is.label) continue;
      if (is.held_out.empty()) is.held_out = was.held_out;
      if (is.tune.empty()) is.tune = was.tune;
    }
}

}  // namespace emox
