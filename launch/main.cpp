#include "launch/commands/command.h"
#include "launch/train/signals.h"

int main(int argc, char** argv) {
  emox::hold_signals();
  return emox::cli_main(argc, argv);
}
