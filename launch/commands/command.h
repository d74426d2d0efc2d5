// The subcommands of emox and their help screens (design 4.11 and 5).
#pragma once

#include <string>
#include <vector>

namespace emox {

struct Command {
  const char* name;
  const char* summary;
  int (*run)(const std::vector<std::string>&
                 args);   ///< arguments after the command's name; returns an ExitCode (launch/run/failure.h)
  std::string (*help)();  ///< at most 24 lines of 80 columns
  bool takes_recipe;      ///< `--help SECTION` explains the recipe's keys
  bool resumes = false;   ///< a signal asks it to save and end (launch/run/signals.h); others end at once
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
int run_placement(const std::vector<std::string>& args);
int run_report(const std::vector<std::string>& args);
int run_slurm(const std::vector<std::string>& args);
int run_status(const std::vector<std::string>& args);

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
std::string help_placement();
std::string help_report();
std::string help_slurm();
std::string help_status();

/// Everything but what main() needs for itself: chooses the command, turns exceptions into messages and exit codes.
/// Output that could not be written makes a command that was done a failed one.
int cli_main(int argc, char** argv);

}  // namespace emox
