#include "launch/commands/command.h"

int main(int argc, char** argv) { return emox::cli_main(argc, argv); }
