// `emox select`: the experts that a domain, some documents or a prompt need, as a file.
#include <fmt/format.h>

#include <algorithm>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <optional>

#include "data/loader/heldout.h"
#include "data/loader/identity.h"
#include "launch/analysis/inference/loaded_model.h"
#include "launch/commands/command.h"
#include "launch/commands/selection_arguments.h"
#include "launch/config/arguments.h"
#include "launch/run/failure.h"
#include "launch/run/on_ranks.h"
#include "launch/run/run_data.h"
#include "launch/run/run_directory.h"
#include "parallel/comm/together.h"
#include "runtime/core/error.h"
#include "runtime/core/idx.h"
#include "runtime/files/atomic_file.h"
#include "runtime/telemetry/json_text.h"
#include "runtime/telemetry/metrics.h"

namespace emox {
namespace {

constexpr const char* kCommand = "emox select";

void check_output(const std::filesystem::path& output, bool force) {
  require_outside_checkpoints(kCommand, output);
  require<UsageError>(std::filesystem::is_directory(std::filesystem::absolute(output).parent_path()),
                      "{}: the directory of --output={} does not exist: make it first", kCommand, output.string());
  require<UsageError>(force || !std::filesystem::exists(output),
                      "{}: {} exists: give --force to replace it, or another --output", kCommand, output.string());
}

// Where these documents are held out from training; nothing when they are no source's.
struct HeldOutPlace {
  std::string label, part;
};
std::optional<HeldOutPlace> held_out_place(const LoadedModel& loaded, const std::filesystem::path& documents) {
  // A copy is recognised by what the checkpoint says of the run's files.
  DataIdentity identity;
  if (documents.extension() == ".npy" && data_identity_of(loaded.manifest, identity)) {
    const std::string own =
        identify_file(documents, "", loaded.recipe.model.vocab_size, token_width(loaded.recipe.data)).fingerprint;
    for (const SourceIdentity& s : identity.sources)
      for (const auto& [files, part] : {std::pair(&s.held_out, kHeldOutParts[0]), std::pair(&s.tune, kHeldOutParts[1])})
        for (const FileIdentity& file : *files)
          if (file.fingerprint == own) return HeldOutPlace{s.label, part};
  }
  for (const SourceSpec& s : loaded.sources)
    for (const char* part : kHeldOutParts) {
      std::error_code missing;
      const auto file = std::filesystem::path(s.path) / fmt::format("{}.npy", part);
      if (std::filesystem::equivalent(documents, file, missing)) return HeldOutPlace{s.label, part};
    }
  return std::nullopt;
}

void check_training_text(Session& session, const LoadedModel& loaded, const SourceSpec& domain) {
  const std::string data = loaded.compare_training_text(session, domain);
  require<UsageError>(!data.starts_with("changed"),
                      "{}: the training text of {} is not what {} was trained on, {}; put the files back or name where "
                      "they are now with --data.source={}:1:PATH; to choose by other text, give it by --documents or "
                      "under another label",
                      kCommand, domain.label, loaded.path.string(), data, domain.label);
  if (data != kDataAsTrained) session.log().warn("data {}", data);
}

ExpertSubset select(Session& session, LoadedModel& loaded, const Arguments& a, const SelectionOptions& options) {
  if (a.has("--domain")) {
    const SourceSpec& domain = loaded.source(a.value("--domain"));
    if (options.method != SelectionMethod::Random) check_training_text(session, loaded, domain);
    return loaded.select_for_domain(session, domain, options);
  }
  Documents documents;
  if (a.has("--documents")) {
    documents = read_documents(a.value("--documents"), *loaded.tokenizer, token_width(loaded.recipe.data));
    if (a.has("--examples") && static_cast<std::int64_t>(documents.size()) > options.examples)
      documents.resize(idx(options.examples));
  } else if (a.has("--prompt")) {
    documents.push_back(loaded.tokenizer->encode(a.value("--prompt")));
  }
  ExpertSubset subset = loaded.select(session, documents, options);
  for (const char* option : {"--documents", "--prompt"})
    if (a.has(option)) subset.provenance[option + 2] = a.value(option);
  if (!a.has("--documents")) return subset;
  const auto place = held_out_place(loaded, a.value("--documents"));
  subset.provenance["held_out_of"] = place ? nlohmann::json(place->label) : nlohmann::json();
  if (!place) return subset;
  subset.provenance["held_out_part"] = place->part;
  session.log().warn(
      "--documents={} are held-out documents of {} ({}.npy): with experts that they chose, a loss on them is no longer "
      "one of unseen text; provenance.held_out_of says so",
      a.value("--documents"), place->label, place->part);
  return subset;
}

}  // namespace

int run_select(const std::vector<std::string>& args) {
  const Arguments a = parse_args(args, {.command = kCommand,
                                        .flags = {"--force", "--json"},
                                        .options = {"--domain", "--documents", "--prompt", "--keep", "--layer-budgets",
                                                    "--method", "--examples", "--seed", "--output"},
                                        .overrides = true,
                                        .min_positional = 1,
                                        .max_positional = 1,
                                        .positional = "RUN|CHECKPOINT --domain=LABEL --keep=K --output=FILE.json"});
  require<UsageError>(!a.value("--output").empty(), "{}: where to? Write --output=FILE.json", kCommand);
  const SelectionOptions options = selection_options(kCommand, a);
  const auto texts = std::count_if(a.options.begin(), a.options.end(), [](const auto& o) {
    return o.first == "--domain" || o.first == "--documents" || o.first == "--prompt";
  });
  const bool random = options.method == SelectionMethod::Random;
  require<UsageError>(texts == 1 || (random && texts == 0),
                      "{}: by which text? Give one of --domain=LABEL, --documents=FILE and --prompt=TEXT", kCommand);
  const std::filesystem::path output = a.value("--output");
  return on_ranks(a.overrides, [&](Session& session) {
    on_root(session.comm(), [&] { check_output(output, a.has("--force")); });
    LoadedModel loaded(session, a.positional[0], a.overrides);
    const ExpertSubset subset = select(session, loaded, a, options);
    on_root(session.comm(), [&] { write_file_atomically(output, json_text(subset.to_json()) + "\n"); });
    if (!session.root()) return static_cast<int>(kDone);
    if (a.has("--json"))
      fmt::print("{}\n", to_line({{"output", output.string()},
                                  {"experts", subset.experts},
                                  {"experts_kept", subset.mean_keep()},
                                  {"provenance", subset.provenance}}));
    else
      fmt::print("{}: {} of {} experts in {} layers, by {}\n", output.string(), subset.mean_keep(), subset.experts,
                 subset.routed.size(), subset.provenance.at("method").get<std::string>());
    return static_cast<int>(kDone);
  });
}

}  // namespace emox
