// Reading the arguments of a command.
#pragma once

#include <map>
#include <string>
#include <string_view>
#include <vector>

namespace emox {

/// What a command accepts besides --help.
struct ArgumentRules {
  const char* command;                    ///< for messages, e.g. "emox train"
  std::vector<std::string> flags = {};    ///< e.g. "--json"
  std::vector<std::string> options = {};  ///< take a value, e.g. "--trace"
  std::vector<std::string> lists = {};    ///< the same, and may be given several times
  bool overrides = false;                 ///< --section.key=value
  bool rank_keys = false;                 ///< of these only those of is_rank_key()
  std::size_t min_positional = 0;
  std::size_t max_positional = 0;
  const char* positional = "";  ///< their names, e.g. "RECIPE.ini"
};

struct Arguments {
  std::vector<std::string> positional;
  std::vector<std::string> overrides;          ///< each "--section.key=value", for load_recipe()
  std::map<std::string, std::string> options;  ///< by name with dashes; a flag has an empty value
  std::map<std::string, std::vector<std::string>> lists;

  bool has(const std::string& name) const { return options.count(name) > 0; }
  std::string value(const std::string& name, const std::string& fallback = "") const {
    const auto found = options.find(name);
    return found == options.end() ? fallback : found->second;
  }
  /// In the order of the command line.
  std::vector<std::string> list(const std::string& name) const {
    const auto found = lists.find(name);
    return found == lists.end() ? std::vector<std::string>{} : found->second;
  }
};

/// The recipe's keys that say on what a command runs: "--parallel.*", "--train.threads", "--run.device",
/// "--train.precision".
bool is_rank_key(std::string_view name);
/// Splits the arguments; `--name value` and `--name=value` mean the same, `--` ends the options. Throws UsageError with
/// the nearest name for an unknown option, and for a missing or surplus argument.
Arguments parse_args(const std::vector<std::string>& args, const ArgumentRules& rules);
/// A whole number of at least `least`; UsageError naming command and option otherwise.
int whole_number(const char* command, const std::string& option, const std::string& text, int least);

}  // namespace emox
