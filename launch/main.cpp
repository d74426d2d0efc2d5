#include "launch/commands/command.h"
#include "launch/run/signals.h"

int main(int argc, char** argv) {
  emox::hold_signals();
  return emox::cli_main(argc, argv);
}
