#include "runtime/cuda/architectures.h"

#include <cctype>
#include <cstdlib>
#include <sstream>

#ifndef EMOX_CUDA_ARCHITECTURES
#define EMOX_CUDA_ARCHITECTURES "90a"  // of the emulator
#endif

namespace emox::cuda {
namespace {

struct Architecture {
  int capability;  // 90
  bool exact;      // "90a": only this one
  bool real, intermediate;
  std::string name;  // "90a"
};

std::vector<Architecture> parsed(const std::string& list) {
  std::vector<Architecture> all;
  std::istringstream in(list);
  for (std::string item; std::getline(in, item, ';');) {
    const std::string name = item.substr(0, item.find('-'));
    const std::string kind = item.find('-') == std::string::npos ? "" : item.substr(item.find('-') + 1);
    const bool exact = !name.empty() && std::isdigit(static_cast<unsigned char>(name.back())) == 0;
    all.push_back({std::atoi(name.c_str()), exact, kind != "virtual", kind != "real", name});
  }
  return all;
}

}  // namespace

std::vector<std::string> compiled_architectures() {
  std::vector<std::string> names;
  for (const Architecture& a : parsed(EMOX_CUDA_ARCHITECTURES)) {
    if (a.real) names.push_back("sm_" + a.name);
    if (a.intermediate) names.push_back("compute_" + a.name);
  }
  return names;
}

bool compiled_for(const std::string& name) {
  for (const Architecture& a : parsed(EMOX_CUDA_ARCHITECTURES))
    if (a.real && a.name == name) return true;
  return false;
}

bool runs_on(const std::string& architectures, int major, int minor) {
  const int capability = 10 * major + minor;
  for (const Architecture& a : parsed(architectures)) {
    if (a.exact && a.capability == capability) return true;
    if (a.exact) continue;
    if (a.real && a.capability / 10 == major && a.capability <= capability) return true;
    if (a.intermediate && a.capability <= capability) return true;
  }
  return false;
}

bool runs_on(int major, int minor) { return runs_on(EMOX_CUDA_ARCHITECTURES, major, minor); }

}  // namespace emox::cuda
