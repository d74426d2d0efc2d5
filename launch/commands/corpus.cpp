#include "data/corpus/corpus.h"

#include <fmt/format.h>

#include <nlohmann/json.hpp>

#include "launch/commands/command.h"
#include "runtime/core/error.h"
#include "runtime/telemetry/log.h"

namespace emox {
namespace {

std::int64_t positive(const std::string& option, const std::string& text) {
  std::size_t used = 0;
  std::int64_t value = 0;
  try {
    value = std::stoll(text, &used);
  } catch (const std::exception&) {
    used = 0;
  }
  require<UsageError>(used == text.size() && value > 0, "emox corpus: {} = '{}' is not a positive whole number", option,
                      text);
  return value;
}

}  // namespace

int run_corpus(const std::vector<std::string>& args) {
  const Arguments a = parse_args(args, {.command = "emox corpus",
                                        .flags = {"--json", "--force", "--keep-packages"},
                                        .options = {"--output", "--bytes-per-domain", "--packages"}});
  CorpusOptions options;
  options.output = a.value("--output", options.output);
  options.download_directory = a.value("--packages");
  options.keep_packages = a.has("--keep-packages");
  options.force = a.has("--force");
  if (a.has("--bytes-per-domain"))
    options.bytes_per_domain = positive("--bytes-per-domain", a.value("--bytes-per-domain"));
  Log log;
  const CorpusReport report = build_corpus(options, log);
  if (a.has("--json")) {
    fmt::print("{}\n", to_json(report).dump());
    return kDone;
  }
  std::int64_t bytes = 0;
  for (const DomainReport& d : report.domains) {
    bytes += d.bytes;
    fmt::print("{:<20} {:>7} documents {:>9} bytes   held out {:>5} documents {:>8} bytes\n", d.label, d.documents,
               d.bytes, d.held_out_documents, d.held_out_bytes);
  }
  fmt::print("{} domains, {:.1f} MB of training text in {} ({:.0f} s)\n", report.domains.size(),
             static_cast<double>(bytes) / 1e6, report.output, report.seconds);
  return kDone;
}

}  // namespace emox
