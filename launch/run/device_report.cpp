#include "launch/run/device_report.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <nlohmann/json.hpp>

namespace emox {

nlohmann::ordered_json describe_devices(const Accelerator* cuda) {
  using Json = nlohmann::ordered_json;
  Json out = {{"cuda", "built without CUDA"},
              {"cuda_compiled_for", Json::array()},
              {"cuda_versions", Json::object()},
              {"devices", Json::array()}};
  if (cuda == nullptr) return out;
  std::string versions;
  for (const auto& [what, version] : cuda->versions()) {
    out["cuda_versions"][what] = version;
    versions += fmt::format("{}{} {}", versions.empty() ? "" : ", ", what, version);
  }
  out["cuda_compiled_for"] = cuda->compiled_for();
  const std::string trouble = cuda->trouble();
  out["cuda"] = fmt::format("built in, for {} ({}){}{}", fmt::join(cuda->compiled_for(), ", "), versions,
                            trouble.empty() ? "" : "; cannot be used: ", trouble);
  if (!trouble.empty()) return out;
  for (int i = 0; i < cuda->count(); ++i) {
    const DeviceProperties p = cuda->properties(i);
    const std::string why_not = cuda->unusable(i);
    out["devices"].push_back({{"index", i},
                              {"name", p.name},
                              {"compute_capability", fmt::format("{}.{}", p.major, p.minor)},
                              {"processors", p.processors},
                              {"memory", p.memory},
                              {"free", p.free},
                              {"pci_bus", p.bus},
                              {"ecc", p.ecc},
                              {"usable", why_not.empty()},
                              {"why_not", why_not.empty() ? Json(nullptr) : Json(why_not)}});
  }
  return out;
}

std::string device_line(const nlohmann::ordered_json& d) {
  const auto gib = [&](const char* key) { return d[key].get<double>() / (1 << 30); };
  return fmt::format("{}, compute capability {}, {} processors, {:.1f} of {:.1f} GiB free, PCI {}, ECC {}: {}",
                     d["name"].get<std::string>(), d["compute_capability"].get<std::string>(),
                     d["processors"].get<int>(), gib("free"), gib("memory"), d["pci_bus"].get<std::string>(),
                     d["ecc"].get<bool>() ? "on" : "off",
                     d["usable"].get<bool>() ? "usable" : d["why_not"].get<std::string>());
}

}  // namespace emox
