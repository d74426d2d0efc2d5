// `emox data`: token files read whole.
#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <optional>
#include <utility>

#include "data/loader/verify_file.h"
#include "launch/checkpoint_tool/checkpoint_tool.h"
#include "launch/commands/command.h"
#include "launch/config/arguments.h"
#include "launch/config/recipe_file.h"
#include "launch/run/failure.h"
#include "launch/run/run_data.h"
#include "parallel/checkpoint/layout.h"
#include "runtime/core/error.h"
#include "runtime/telemetry/metrics.h"

namespace emox {
namespace {

namespace fs = std::filesystem;
using Clock = std::chrono::steady_clock;

constexpr const char* kCommand = "emox data verify";

// A file that is to be read, and what it is compared with.
struct Work {
  fs::path path;
  std::string source;  ///< label; empty: named by itself
  std::int64_t vocab_size = 0;
  TokenWidth width = TokenWidth::Auto;
  std::optional<FileIdentity> trained;  ///< what a run knows of it
  std::string run;                      ///< that run
};

struct Result {
  Work work;
  std::optional<VerifiedFile> verified;
  std::vector<std::string> problems;
  bool recorded = false;  ///< compared with a record
};

// One line on a terminal, again and again.
class ReadProgress {
 public:
  explicit ReadProgress(std::int64_t bytes) : bytes_(bytes), shown_(isatty(STDERR_FILENO) != 0) {}
  ~ReadProgress() {
    if (any_) fmt::print(stderr, "\r\x1B[K");
  }
  void add(std::int64_t bytes, const std::string& name) {
    read_ += bytes;
    const auto now = Clock::now();
    if (!shown_ || now - last_ < std::chrono::milliseconds(200)) return;
    last_ = now;
    any_ = true;
    const double seconds = std::chrono::duration<double>(now - start_).count();
    fmt::print(stderr, "\r\x1B[K{:3.0f} % of {}, {}/s, {}",
               100.0 * static_cast<double>(read_) / static_cast<double>(std::max<std::int64_t>(bytes_, 1)),
               size_text(bytes_), size_text(static_cast<std::int64_t>(static_cast<double>(read_) / seconds)), name);
    std::fflush(stderr);
  }

 private:
  std::int64_t bytes_, read_ = 0;
  const bool shown_;
  bool any_ = false;
  const Clock::time_point start_ = Clock::now();
  Clock::time_point last_ = start_;
};

/// The newest checkpoint whose manifest can be read; the directory itself if it is one.
std::optional<std::pair<fs::path, Manifest>> checkpoint_of(const fs::path& path) {
  if (!fs::is_directory(path)) return std::nullopt;
  if (fs::exists(path / "manifest.json")) return std::pair(fs::canonical(path), read_manifest(path));  // no link
  const fs::path directory = fs::is_directory(path / "checkpoints") ? path / "checkpoints" : path;
  std::string why;
  const auto all = list_checkpoints(directory);
  for (const fs::path& checkpoint : all) {
    try {
      return std::pair(checkpoint, read_manifest(checkpoint));
    } catch (const IoError& e) {
      if (why.empty()) why = e.message();
    }
  }
  require<UsageError>(all.empty(), "{}: no manifest in {} can be read: {}", kCommand, directory.string(), why);
  return std::nullopt;
}

void append_parts(std::vector<Work>& work, const SourceFiles& files, const SourceIdentity* trained, const Work& like) {
  const auto append = [&](const std::vector<fs::path>& paths, const std::vector<FileIdentity>* known) {
    require<UsageError>(known == nullptr || known->empty() || known->size() == paths.size(),
                        "data.source {}: {} has {} file(s), the run had {}", files.spec.label, files.spec.path,
                        paths.size(), known == nullptr ? 0 : known->size());
    for (std::size_t i = 0; i < paths.size(); ++i) {
      work.push_back(like);
      work.back().path = paths[i];
      work.back().source = files.spec.label;
      if (known != nullptr && !known->empty()) work.back().trained = (*known)[i];
    }
  };
  append(files.train, trained == nullptr ? nullptr : &trained->train);
  append(files.held_out, trained == nullptr ? nullptr : &trained->held_out);
  append(files.tune, trained == nullptr ? nullptr : &trained->tune);
}

std::vector<Work> work_of_run(const fs::path& checkpoint, const Manifest& manifest) {
  const Recipe recipe = parse_recipe(manifest.recipe, (checkpoint / "manifest.json").string());
  DataIdentity identity;
  require<UsageError>(data_identity_of(manifest, identity),
                      "{}: {} does not say what it was trained on (an older emox saved it): name its recipe or its "
                      "files instead",
                      kCommand, checkpoint.string());
  Work like;
  like.vocab_size = recipe.model.vocab_size;
  like.width = token_width(recipe.data);
  like.run = checkpoint.string();
  const std::vector<fs::path> bases = data_bases(checkpoint, manifest);
  std::vector<Work> work;
  for (const SourceIdentity& s : identity.sources)
    append_parts(work, find_source({s.label, s.weight, s.path}, bases), &s, like);
  return work;
}

std::vector<Work> work_of_recipe(const std::string& file, const std::vector<std::string>& overrides) {
  const Recipe recipe = load_recipe(file, overrides);
  Work like;
  like.vocab_size = recipe.model.vocab_size;
  like.width = token_width(recipe.data);
  const std::vector<fs::path> bases{fs::path(), fs::absolute(file).parent_path()};
  std::vector<Work> work;
  for (const SourceSpec& spec : sources_of(recipe.data)) append_parts(work, find_source(spec, bases), nullptr, like);
  return work;
}

TokenWidth parse_width(const std::string& text) {
  if (text == "auto") return TokenWidth::Auto;
  require<UsageError>(text == "uint16" || text == "uint32", "{}: --token-type={}: use auto, uint16 or uint32", kCommand,
                      text);
  return text == "uint16" ? TokenWidth::Uint16 : TokenWidth::Uint32;
}

std::vector<Work> work_of(const std::string& argument, const Arguments& a) {
  if (const auto found = checkpoint_of(argument)) return work_of_run(found->first, found->second);
  if (argument.ends_with(".ini")) return work_of_recipe(argument, a.overrides);
  Work like;
  if (a.has("--vocab-size")) like.vocab_size = whole_number(kCommand, "--vocab-size", a.value("--vocab-size"), 1);
  like.width = parse_width(a.value("--token-type", "auto"));
  const fs::path here;
  std::vector<Work> work;
  append_parts(work, find_source({argument, 1, argument}, std::span(&here, 1)), nullptr, like);
  return work;
}

Result verify(const Work& work, ReadProgress& progress, bool record) {
  Result result{work, std::nullopt, {}, false};
  const std::string name = work.path.string();
  try {
    result.verified =
        verify_file(work.path, work.vocab_size, work.width, [&](std::int64_t n) { progress.add(n, name); });
    result.problems = result.verified->problems;
    if (work.trained)
      if (const auto difference = file_difference(*work.trained, result.verified->identity))
        result.problems.push_back(fmt::format("{} (as in {})", *difference, work.run));
    if (record && result.problems.empty()) write_record(work.path, *result.verified);
    result.recorded = has_record(work.path);
    if (const auto difference = record_difference(work.path, *result.verified)) result.problems.push_back(*difference);
  } catch (const Error& e) {
    result.problems.push_back(e.message());
  }
  return result;
}

nlohmann::ordered_json to_json(const Result& r) {
  nlohmann::ordered_json j = {{"path", r.work.path.string()}, {"source", nullptr}};
  if (!r.work.source.empty()) j["source"] = r.work.source;
  if (r.verified) {
    const FileIdentity& f = r.verified->identity;
    j["bytes"] = f.layout.bytes;
    j["type"] = name_of(f.layout.type);
    j["tokens"] = f.layout.tokens;
    j["documents"] = f.documents < 0 ? nlohmann::ordered_json(nullptr) : nlohmann::ordered_json(f.documents);
    j["fingerprint"] = f.fingerprint;
    j["whole"] = r.verified->whole;
  }
  j["compared_with_run"] = r.work.trained.has_value();
  j["compared_with_record"] = r.recorded;
  j["problems"] = r.problems;
  return j;
}

void print(const Result& r) {
  const char* state = r.problems.empty() ? "ok " : "BAD";
  if (!r.verified) {
    fmt::print("{} {}\n", state, r.work.path.string());
  } else {
    const FileIdentity& f = r.verified->identity;
    fmt::print("{} {}: {} ids of type {}{}{}{}\n", state, r.work.path.string(), f.layout.tokens, name_of(f.layout.type),
               f.documents < 0 ? "" : fmt::format(", {} documents", f.documents),
               r.work.trained ? ", as the run had it" : "", r.recorded ? ", as recorded" : "");
  }
  for (const std::string& problem : r.problems) fmt::print("    {}\n", problem);
}

}  // namespace

int run_data(const std::vector<std::string>& args) {
  require<UsageError>(!args.empty() && args[0] == "verify",
                      "emox data: what to do? Write emox data verify RUN|CHECKPOINT|RECIPE.ini|FILE...");
  const Arguments a = parse_args({args.begin() + 1, args.end()}, {.command = kCommand,
                                                                  .flags = {"--json", "--record"},
                                                                  .options = {"--vocab-size", "--token-type"},
                                                                  .overrides = true,
                                                                  .min_positional = 1,
                                                                  .max_positional = 1 << 20,
                                                                  .positional = "RUN|CHECKPOINT|RECIPE.ini|FILE..."});
  std::vector<Work> work;
  for (const std::string& argument : a.positional)
    for (Work& w : work_of(argument, a)) work.push_back(std::move(w));
  std::int64_t bytes = 0;
  std::error_code ignored;
  for (const Work& w : work) bytes += static_cast<std::int64_t>(fs::file_size(w.path, ignored));
  const auto start = Clock::now();
  std::int64_t bad = 0;
  auto files = nlohmann::ordered_json::array();
  {
    ReadProgress progress(bytes);
    for (const Work& w : work) {
      const Result result = verify(w, progress, a.has("--record"));
      bad += result.problems.empty() ? 0 : 1;
      files.push_back(to_json(result));
      if (!a.has("--json")) print(result);
    }
  }
  const double seconds = std::chrono::duration<double>(Clock::now() - start).count();
  if (a.has("--json"))
    fmt::print("{}\n", to_line({{"files", files}, {"bad", bad}, {"bytes", bytes}, {"seconds", seconds}}));
  else
    fmt::print("{} file(s), {}, {} bad ({:.1f} s)\n", work.size(), size_text(bytes), bad, seconds);
  return bad == 0 ? kDone : kFailed;
}

}  // namespace emox
