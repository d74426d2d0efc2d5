// The subcommands of emox, and what they share: reading arguments, help, exit codes (design 4.11 and 5).
#pragma once

#include <functional>
#include <map>
#include <string>
#include <vector>

namespace emox {

enum ExitCode : int { kDone = 0, kFailed = 1, kUsage = 2, kTryAgain = 75 };

struct Command {
  const char* name;
  const char* summary;
  int (*run)(const std::vector<std::string>& args);  ///< arguments after the command's name; returns an ExitCode
  std::string (*help)();                             ///< at most 24 lines of 80 columns
  bool takes_recipe;                                 ///< `--help SECTION` explains the recipe's keys
  bool resumes = false;  ///< a signal asks it to save and end (launch/train/signals.h); others end at once
};

const std::vector<Command>& commands();

int run_train(const std::vector<std::string>& args);
int run_eval(const std::vector<std::string>& args);
int run_corpus(const std::vector<std::string>& args);
int run_bench(const std::vector<std::string>& args);
int run_doctor(const std::vector<std::string>& args);
int run_checkpoint(const std::vector<std::string>& args);
int run_study(const std::vector<std::string>& args);
int run_select(const std::vector<std::string>& args);
int run_subset(const std::vector<std::string>& args);
int run_data(const std::vector<std::string>& args);
int run_plan(const std::vector<std::string>& args);

std::string help_overview();
std::string help_train();
std::string help_eval();
std::string help_corpus();
std::string help_bench();
std::string help_doctor();
std::string help_checkpoint();
std::string help_study();
std::string help_select();
std::string help_subset();
std::string help_data();
std::string help_plan();

/// Everything but what main() needs for itself: chooses the command, turns exceptions into messages and exit codes.
/// Output that could not be written makes a command that was done a failed one.
int cli_main(int argc, char** argv);

/// Runs the body; an exception becomes "emox: MESSAGE" on stderr and its exit code: 2 for UsageError, 75 for
/// TryAgainError, else 1.
int guarded(const std::function<int()>& body);

/// What a command accepts besides --help.
struct ArgumentRules {
  const char* command;                    ///< for messages, e.g. "emox train"
  std::vector<std::string> flags = {};    ///< e.g. "--json"
  std::vector<std::string> options = {};  ///< take a value, e.g. "--trace"
  std::vector<std::string> lists = {};    ///< the same, and may be given several times
  bool overrides = false;                 ///< --section.key=value
  bool rank_keys = false;                 ///< of these only --parallel.key=value and --train.threads=N
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

/// Splits the arguments; `--name value` and `--name=value` mean the same, `--` ends the options. Throws UsageError with
/// the nearest name for an unknown option, and for a missing or surplus argument.
Arguments parse_args(const std::vector<std::string>& args, const ArgumentRules& rules);
/// A whole number of at least `least`; UsageError naming command and option otherwise.
int whole_number(const char* command, const std::string& option, const std::string& text, int least);

}  // namespace emox
