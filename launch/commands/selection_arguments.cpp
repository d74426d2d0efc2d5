#include "launch/commands/selection_arguments.h"

#include "runtime/core/error.h"

namespace emox {

SelectionOptions selection_options(const char* command, const Arguments& a) {
  require<UsageError>(
      a.has("--keep") != a.has("--layer-budgets"),
      "{}: how many experts? Give --keep=K for every layer, or --layer-budgets=K,K,... for each; shared "
      "experts count",
      command);
  SelectionOptions options;
  const std::string option = a.has("--keep") ? "--keep" : "--layer-budgets";
  std::string text = a.value(option);
  for (;;) {
    const std::size_t comma = option == "--keep" ? std::string::npos : text.find(',');
    options.keep.push_back(whole_number(command, option, text.substr(0, comma), 1));
    if (comma == std::string::npos) break;
    text = text.substr(comma + 1);
  }
  if (a.has("--method"))
    options.method = parse_selection_method(a.value("--method"), std::string(command) + ": --method");
  if (a.has("--examples")) options.examples = whole_number(command, "--examples", a.value("--examples"), 1);
  if (a.has("--seed")) options.seed = static_cast<std::uint64_t>(whole_number(command, "--seed", a.value("--seed"), 0));
  return options;
}

void warn_of_other_run(Log& log, const ExpertSubset& subset, const std::string& source, const RunConfig& run,
                       const std::filesystem::path& checkpoint) {
  // Free: people edit it, and what is of another type says nothing.
  const auto& from = subset.provenance;
  const auto is = [](const auto& object, const char* key, const nlohmann::json& value) {
    return object.is_object() && object.contains(key) && nlohmann::json(object[key]) == value;
  };
  if (!from.is_object() || !from.contains("checkpoint") || !from["checkpoint"].is_string()) return;
  const auto chosen_on = from["checkpoint"].get<std::string>();
  const auto run_of = [](const std::filesystem::path& p) { return p.parent_path().parent_path(); };
  if (run_of(chosen_on) == run_of(std::filesystem::absolute(checkpoint).lexically_normal())) return;
  // The directory may have been moved.
  if (from.contains("run") && is(from["run"], "name", run.name) && is(from["run"], "seed", run.seed)) return;
  log.warn("{} was chosen on {}, another run: its experts are not those that have the same numbers here", source,
           chosen_on);
}

}  // namespace emox
