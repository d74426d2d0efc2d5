// CUDA on the CPU, for tests: what emox uses of the language, the device functions and the run-time library. See the
// README.md of this folder's parent.
#pragma once

#include <emulator/device_functions.h>
#include <emulator/launch.h>
#include <emulator/runtime_api.h>
#include <emulator/types.h>
