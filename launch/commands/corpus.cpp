#include "data/corpus/corpus.h"

#include <fmt/format.h>

#include <nlohmann/json.hpp>

#include "data/corpus/overlap.h"
#include "launch/commands/command.h"
#include "runtime/core/error.h"
#include "runtime/telemetry/json_text.h"
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
    fmt::print("{}\n", json_text(to_json(report)));
    return kDone;
  }
  std::int64_t bytes = 0;
  const auto percent = [](double share) { return fmt::format("{:.2f} %", 100 * share); };
  fmt::print("{:<20} {:>22}   {:>28}   {:>28}\n{:<20} {:>9} {:>12}", "", "training", "tuning", "reported", "",
             "documents", "bytes");
  for (int i = 0; i < 2; ++i) fmt::print("   {:>9} {:>9} {:>8}", "documents", "bytes", "repeated");
  fmt::print("\n");
  for (const DomainReport& d : report.domains) {
    bytes += d.train.bytes;
    fmt::print("{:<20} {:>9} {:>12}", d.label, d.train.documents, d.train.bytes);
    for (const PartReport* p : {&d.tune, &d.held_out})
      fmt::print("   {:>9} {:>9} {:>8}", p->documents, p->bytes, percent(p->in_training_file));
    fmt::print("\n");
  }
  fmt::print("repeated: in spans of {} bytes that also occur in the training text\n", kSpanBytes);
  fmt::print("{} domains, {:.1f} MB of training text in {} ({:.0f} s)\n", report.domains.size(),
             static_cast<double>(bytes) / 1e6, report.output, report.seconds);
  return kDone;
}

}  // namespace emox
