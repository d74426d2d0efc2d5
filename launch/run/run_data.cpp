#include "launch/run/run_data.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <chrono>
#include <nlohmann/json.hpp>
#include <optional>
#include <utility>

#include "launch/config/changes.h"
#include "launch/run/node_files.h"
#include "parallel/checkpoint/layout.h"
#include "parallel/comm/progress.h"
#include "parallel/comm/together.h"
#include "runtime/core/error.h"
#include "runtime/core/idx.h"
#include "runtime/core/quoted.h"

namespace emox {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

// A file of a source, and which of its parts it belongs to.
struct Task {
  std::size_t source = 0;
  std::vector<FileIdentity> SourceIdentity::*part = nullptr;
  std::string path;
};

json paths_json(const std::vector<fs::path>& paths) {
  json list = json::array();
  for (const fs::path& p : paths) list.push_back(quoted_text(p.string()));
  return list;
}

// What rank 0 finds, as a text for the others.
std::string found_text(const Recipe& recipe, const std::vector<fs::path>& bases, const DataParts& parts) {
  json all = json::array();
  for (const SourceSpec& spec : sources_of(recipe.data)) {
    const SourceFiles f = parts.train ? find_source(spec, bases) : find_held_out(spec, bases);
    json j = {{"label", quoted_text(spec.label)},
              {"weight", spec.weight},
              {"path", quoted_text(f.written)},
              {"base", quoted_text(f.base.string())},
              {"found", quoted_text(f.spec.path)},
              {"missing", quoted_text(f.missing)},
              {"train", paths_json(f.train)},
              {"held_out", json::array()},
              {"tune", json::array()}};
    if (parts.held_out) j["held_out"] = paths_json(f.held_out), j["tune"] = paths_json(f.tune);
    all.push_back(std::move(j));
  }
  return all.dump();
}

std::vector<Task> read_found(const std::string& text, RunData& data) {
  std::vector<Task> tasks;
  const json all = json::parse(text);
  const auto get = [](const json& j, const char* key) { return unquoted_text(j.at(key).get<std::string>()); };
  for (const json& j : all) {
    const std::string label = get(j, "label");
    const double weight = j.at("weight");
    data.sources.push_back({label, weight, get(j, "found")});
    data.identity.sources.push_back({label, weight, get(j, "path"), get(j, "base"), {}, {}, {}});
    if (const std::string missing = get(j, "missing"); !missing.empty()) data.missing.push_back(missing);
    const std::pair<const char*, std::vector<FileIdentity> SourceIdentity::*> kParts[] = {
        {"train", &SourceIdentity::train}, {"held_out", &SourceIdentity::held_out}, {"tune", &SourceIdentity::tune}};
    for (const auto& [name, part] : kParts)
      for (const json& path : j.at(name))
        tasks.push_back({data.sources.size() - 1, part, unquoted_text(path.get<std::string>())});
  }
  return tasks;
}

FileIdentity identify(const Task& task, const Recipe& recipe, const RunData& data) {
  return identify_file(task.path, data.sources[task.source].label, recipe.model.vocab_size, token_width(recipe.data));
}

// This rank's share, or the first error, as a text for rank 0.
std::string identified_text(Communicator& comm, const Recipe& recipe, const RunData& data,
                            const std::vector<Task>& tasks) {
  json own = json::array();
  const auto ranks = idx(comm.size());
  try {
    for (auto i = idx(comm.rank()); i < tasks.size(); i += ranks) {
      const std::string mark = file_mark(tasks[i].path);  // before: a file that changes meanwhile is another one
      own.push_back({{"file", to_json(identify(tasks[i], recipe, data))}, {"mark", mark}});
    }
  } catch (const UsageError& e) {
    return json({{"usage", quoted_text(e.message())}}).dump();
  } catch (const std::exception& e) {
    return json({{"error", quoted_text(e.what())}}).dump();
  }
  return own.dump();
}

std::string together(const std::vector<std::string>& texts, std::size_t tasks) {
  std::vector<json> of_rank;
  for (const std::string& text : texts) {
    of_rank.push_back(json::parse(text));
    const json& j = of_rank.back();
    if (j.contains("usage")) fail<UsageError>("{}", unquoted_text(j.at("usage").get<std::string>()));
    if (j.contains("error")) fail<IoError>("{}", unquoted_text(j.at("error").get<std::string>()));
  }
  json all = json::array();
  for (std::size_t i = 0; i < tasks; ++i) all.push_back(std::move(of_rank[i % texts.size()].at(i / texts.size())));
  return all.dump();
}

std::optional<DataIdentity> trained_on(const Manifest& manifest) {
  if (!manifest.extra.is_object() || !manifest.extra.contains(kDataKey)) return std::nullopt;
  return data_identity_from(manifest.extra.at(kDataKey));
}

// Where a run found its sources; a hint only, so nothing is thrown.
std::vector<fs::path> bases_of(const Manifest& manifest) {
  std::vector<fs::path> bases;
  try {
    if (const auto identity = trained_on(manifest))
      for (const SourceIdentity& s : identity->sources)
        if (!s.base.empty() && std::find(bases.begin(), bases.end(), s.base) == bases.end()) bases.emplace_back(s.base);
  } catch (const Error&) {
  }
  return bases;
}

// The directory and those above it: a run is usually at runs/NAME below the directory that it was started in.
void append_around(const fs::path& run, std::vector<fs::path>& bases) {
  fs::path directory = fs::absolute(run).lexically_normal();
  if (!directory.has_filename()) directory = directory.parent_path();
  for (int up = 0; up < 4 && directory.has_relative_path(); ++up, directory = directory.parent_path())
    bases.push_back(directory);
}

std::vector<fs::path> bases_of_run(const fs::path& directory) {
  const auto checkpoints = list_checkpoints(directory / "checkpoints");
  if (checkpoints.empty()) return {};
  std::vector<fs::path> bases;
  try {
    bases = bases_of(read_manifest(checkpoints.front()));
  } catch (const Error&) {  // a hint only
  }
  append_around(directory, bases);
  return bases;
}

}  // namespace

TokenWidth token_width(const DataConfig& data) {
  switch (data.token_type) {
    case TokenType::Auto:
      return TokenWidth::Auto;
    case TokenType::Uint16:
      return TokenWidth::Uint16;
    case TokenType::Uint32:
      return TokenWidth::Uint32;
  }
  return TokenWidth::Auto;
}

std::vector<SourceSpec> sources_of(const DataConfig& data) {
  std::vector<SourceSpec> sources;
  for (const std::string& s : data.source) sources.push_back(SourceSpec::parse(s));
  return sources;
}

RunData find_data(Session& session, const Recipe& recipe, const std::vector<fs::path>& bases, const DataParts& parts) {
  Communicator& comm = session.comm();
  const IoPhase io(comm);
  const auto start = std::chrono::steady_clock::now();
  std::string text;
  on_root(session.comm(), [&] { text = found_text(recipe, bases, parts); });
  text = broadcast_text(comm, text);
  RunData data;
  const std::vector<Task> tasks = read_found(text, data);
  const auto texts = gather_texts(comm, identified_text(comm, recipe, data, tasks));
  on_root(session.comm(), [&] { text = together(texts, tasks.size()); });
  text = broadcast_text(comm, text);
  const json identities = json::parse(text);
  std::int64_t tokens = 0, bytes = 0;
  std::vector<SeenFile> seen;
  for (std::size_t i = 0; i < tasks.size(); ++i) {
    seen.push_back({file_identity_from(identities.at(i).at("file")), identities.at(i).at("mark").get<std::string>(),
                    static_cast<int>(i % idx(comm.size()))});
    tokens += seen[i].identity.layout.tokens, bytes += seen[i].identity.layout.bytes;
  }
  require_same_files(comm, seen,
                     {.mark = [&](std::size_t i) { return file_mark(tasks[i].path); },
                      .identify = [&](std::size_t i) { return identify(tasks[i], recipe, data); }});
  for (std::size_t i = 0; i < tasks.size(); ++i)
    (data.identity.sources[tasks[i].source].*tasks[i].part).push_back(std::move(seen[i].identity));
  for (const std::string& line : training_text_that_is_held_out(data.identity)) session.log().warn("{}", line);
  if (!tasks.empty())
    session.log().detail("data: {} source(s), {} file(s), {} tokens, {:.1f} MiB; looked at in {:.2f} s",
                         data.sources.size(), tasks.size(), tokens, static_cast<double>(bytes) / 1048576,
                         std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
  return data;
}

DataIdentity identify_data(const Recipe& recipe, const std::vector<fs::path>& bases) {
  DataIdentity data;
  for (const SourceSpec& spec : sources_of(recipe.data)) {
    const SourceFiles files = find_source(spec, bases);
    data.sources.push_back({spec.label, spec.weight, files.written, files.base.string(), {}, {}, {}});
    SourceIdentity& source = data.sources.back();
    for (const auto& [paths, part] :
         {std::pair(&files.train, &source.train), std::pair(&files.held_out, &source.held_out),
          std::pair(&files.tune, &source.tune)})
      for (const fs::path& path : *paths)
        part->push_back(identify_file(path, spec.label, recipe.model.vocab_size, token_width(recipe.data)));
  }
  return data;
}

RunData find_training_data(Session& session, const Recipe& recipe, const std::vector<fs::path>& look_in) {
  std::vector<fs::path> bases{fs::path()};
  bases.insert(bases.end(), look_in.begin(), look_in.end());
  if (session.root())
    for (fs::path& base : bases_of_run(recipe.run.dir)) bases.push_back(std::move(base));
  RunData data = find_data(session, recipe, bases);
  on_root(session.comm(), [&] {  // of a run that goes on, check_same_data says what is other than it was
    if (!list_checkpoints(fs::path(recipe.run.dir) / "checkpoints").empty()) return;
    for (const SourceIdentity& source : data.identity.sources)
      for (const FileIdentity& file : source.train) require_index_covers(file);
  });
  return data;
}

std::vector<fs::path> data_bases(const fs::path& checkpoint, const Manifest& manifest) {
  std::vector<fs::path> bases = bases_of(manifest);
  bases.emplace_back();
  append_around(fs::absolute(checkpoint).lexically_normal().parent_path().parent_path(),
                bases);  // of checkpoints/step-N
  return bases;
}

RunData find_data_of(Session& session, const Recipe& recipe, const fs::path& checkpoint, const Manifest& manifest,
                     const DataParts& parts) {
  return find_data(session, recipe, data_bases(checkpoint, manifest), parts);
}

bool data_identity_of(const Manifest& manifest, DataIdentity& identity) {
  auto found = trained_on(manifest);
  if (found) identity = std::move(*found);
  return found.has_value();
}

OtherText check_same_data(const Manifest& checkpoint, const DataIdentity& now, const RunConfig& run, Log& log) {
  const auto before = trained_on(checkpoint);
  if (!before) {
    log.warn(
        "the checkpoint of step {} does not say what it was trained on (an older emox saved it): whether the data "
        "of {} are still the same is not known",
        checkpoint.step, run.dir);
    return {};
  }
  std::vector<std::string> lines;
  OtherText other;
  for (const ContentDifference& d : content_differences(*before, now)) {
    if (d.is_new) continue;
    lines.push_back(d.text);
    std::vector<std::string>& labels = d.training ? other.train : other.held_out;
    if (std::find(labels.begin(), labels.end(), d.label) == labels.end()) labels.push_back(d.label);
  }
  const std::vector<std::string> changes = change_keys(run.change);
  require<UsageError>(
      lines.empty() || std::find(changes.begin(), changes.end(), "data.source") != changes.end(),
      "the data of the run in {} are not what its checkpoint of step {} was trained on: {}; put the files back, name "
      "where they are now with --data.source=LABEL:WEIGHT:PATH, go on with the new text by --run.change=data.source, "
      "or start a new run with another run.dir",
      run.dir, checkpoint.step, fmt::join(lines, "; "));
  return other;
}

DataIdentity identity_to_keep(const Manifest& found, const DataIdentity& now) {
  DataIdentity kept = now;
  if (const auto before = trained_on(found)) keep_parts_not_found(kept, *before);
  return kept;
}

void check_data_of_run(const fs::path& run, const DataIdentity& now) {
  for (const fs::path& checkpoint : list_checkpoints(run / "checkpoints")) {
    std::optional<DataIdentity> before;
    try {
      before = trained_on(read_manifest(checkpoint));
    } catch (const IoError&) {  // the next one tells, too
      continue;
    }
    if (!before) return;
    std::vector<std::string> lines;
    for (const ContentDifference& d : content_differences(*before, now)) lines.push_back(d.text);
    require<UsageError>(lines.empty(), "{} was trained on other data: {}", run.string(), fmt::join(lines, "; "));
    return;
  }
}

std::string compare_with_training(const Manifest& checkpoint, const DataIdentity& now, const DataParts& parts) {
  const auto before = trained_on(checkpoint);
  if (!before) return "unknown: the checkpoint does not say what it was trained on";
  std::vector<std::string> lines;
  for (const ContentDifference& d : content_differences(*before, now, parts)) lines.push_back(d.text);
  // Nothing that the run had can have been compared.
  for (const SourceIdentity& is : now.sources)
    for (const SourceIdentity& was : before->sources)
      if (parts.held_out && was.label == is.label && was.held_out.empty() && was.tune.empty() &&
          !(is.held_out.empty() && is.tune.empty()))
        lines.push_back(fmt::format("source {}: the run had no held-out text", is.label));
  for (const SourceIdentity& was : before->sources) {
    if (!parts.held_out || (was.held_out.empty() && was.tune.empty())) continue;
    const auto is =
        std::find_if(now.sources.begin(), now.sources.end(), [&](const auto& s) { return s.label == was.label; });
    if (is == now.sources.end() || (!was.held_out.empty() && is->held_out.empty()) ||
        (!was.tune.empty() && is->tune.empty()))
      lines.push_back(fmt::format("source {}: held-out text of the run is not there", was.label));
  }
  return lines.empty() ? kDataAsTrained : fmt::format("changed: {}", fmt::join(lines, "; "));
}

}  // namespace emox
