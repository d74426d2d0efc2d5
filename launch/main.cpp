#include "launch/commands/command.h"
#include "launch/git_version.h"
#include "launch/run/job_facts.h"
#include "launch/run/signals.h"

int main(int argc, char** argv) {
  emox::hold_signals();
  emox::set_git_version(EMOX_GIT);
  return emox::cli_main(argc, argv);
}
