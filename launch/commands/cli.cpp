#include <fmt/format.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <string_view>
#include <thread>

#include "launch/commands/command.h"
#include "launch/config/fields.h"
#include "launch/config/nearest.h"
#include "launch/config/recipe_file.h"
#include "launch/run/failure.h"
#include "launch/run/signals.h"
#include "parallel/comm/mpi_launcher.h"
#include "runtime/core/error.h"
#include "runtime/core/version.h"

namespace emox {
namespace {

// Names that the documentation gives to commands of later versions.
constexpr std::string_view kNotBuilt[] = {"generate", "cluster", "sweep"};

bool is_help(const std::string& arg) { return arg == "--help" || arg == "-h"; }

const Command& find_command(const std::string& name) {
  std::vector<std::string> names;
  for (const Command& command : commands()) {
    if (command.name == name) return command;
    names.emplace_back(command.name);
  }
  require<UsageError>(std::count(std::begin(kNotBuilt), std::end(kNotBuilt), name) == 0,
                      "the command {} is not part of this version; emox --help lists those that are", name);
  fail<UsageError>("unknown command {}: did you mean {}? (emox --help lists all)", name, nearest(name, names));
}

// `--help`, `--help SECTION` or `--help all`, anywhere among the arguments.
int print_help(const Command& command, const std::vector<std::string>& args) {
  const auto at = std::find_if(args.begin(), args.end(), is_help);
  const bool topic = at != args.end() && at + 1 != args.end() && !(at + 1)->starts_with("-");
  const std::string text = topic && command.takes_recipe ? help_text(*(at + 1)) : command.help();
  std::fputs(text.c_str(), stdout);
  return kDone;
}

int dispatch(const std::vector<std::string>& args) {
  if (args.empty() || is_help(args[0]) || (args[0] == "help" && args.size() == 1)) {
    std::fputs(help_overview().c_str(), stdout);
    return kDone;
  }
  if (args[0] == "--version") {
    fmt::print("emox {}\n", kVersion);
    return kDone;
  }
  require<UsageError>(!args[0].starts_with("-"), "unknown option {}: write emox COMMAND, --help or --version", args[0]);
  if (args[0] == "help") {
    std::vector<std::string> topic(args.begin() + 2, args.end());
    topic.insert(topic.begin(), "--help");
    return print_help(find_command(args[1]), topic);
  }
  const Command& command = find_command(args[0]);
  const std::vector<std::string> rest(args.begin() + 1, args.end());
  if (std::any_of(rest.begin(), rest.end(), is_help)) return print_help(command, rest);
  if (!command.resumes) let_signals_end();
  return command.run(rest);
}

}  // namespace

const std::vector<Command>& commands() {
  static const std::vector<Command> table = {
      {"train", "start a run, or resume it when its directory holds one", run_train, help_train, true, true},
      {"eval", "loss and bits per byte of a run on held-out documents", run_eval, help_eval, false},
      {"study", "train EMO and its baselines, and report how they compare", run_study, help_study, true, true},
      {"corpus", "build the text corpus that quickstart and tiny read", run_corpus, help_corpus, false},
      {"data", "read token files whole: are they sound, and what a run had", run_data, help_data, false},
      {"checkpoint", "look into checkpoints: info, verify, diff, export, prune", run_checkpoint, help_checkpoint,
       false},
      {"select", "the experts that a domain, documents or a prompt need, as a file", run_select, help_select, false},
      {"subset", "cut a smaller model with some of the experts out of a run", run_subset, help_subset, false},
      {"plan", "memory, time and fit of a run before it is submitted", run_plan, help_plan, true},
      {"placement", "which rank should hold which expert, from recorded pools", run_placement, help_placement, false},
      {"report", "runs beside each other: curves, scaling, traffic", run_report, help_report, false},
      {"slurm", "write the job script of a run that survives its time limit", run_slurm, help_slurm, true},
      {"status", "what runs are doing, or how they ended", run_status, help_status, false},
      {"bench", "measure a training step, its ops, and dispatch", run_bench, help_bench, true},
      {"doctor", "what this build and this machine can do", run_doctor, help_doctor, false},
  };
  return table;
}

int cli_main(int argc, char** argv) {
  const std::vector<std::string> args(argv + std::min(argc, 1), argv + argc);
  const int code = guarded([&] {
    try {
      return dispatch(args);
    } catch (const std::exception&) {
      // What is wrong before the ranks have met is wrong on all: the first one says it, and its launcher ends the
      // others.
      if (find_launcher().rank > 0) {
        let_signals_end();
        std::this_thread::sleep_for(std::chrono::milliseconds(1500));
      }
      throw;
    }
  });
  errno = 0;
  const bool written = std::fflush(stdout) == 0 && std::ferror(stdout) == 0;
  if (written || code != kDone) return code;
  // A reader that has seen enough (| head) needs no message.
  if (errno == EPIPE) return kFailed;
  std::fputs(fmt::format("emox: what the command printed could not be written: {}\n",
                         errno != 0 ? std::strerror(errno) : "an earlier write failed")
                 .c_str(),
             stderr);
  return kFailed;
}

}  // namespace emox
