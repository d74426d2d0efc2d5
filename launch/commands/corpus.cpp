#include "data/corpus/corpus.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <nlohmann/json.hpp>

#include "data/corpus/overlap.h"
#include "data/corpus/text_corpus.h"
#include "launch/commands/command.h"
#include "launch/config/arguments.h"
#include "launch/run/failure.h"
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

/// What follows `--text`: LABEL=PATH, once or more.
std::vector<LabelledText> take_texts(std::vector<std::string>& args) {
  std::vector<LabelledText> texts;
  for (auto arg = args.begin(); arg != args.end();) {
    const bool joined = arg->starts_with("--text=");
    if (!joined && *arg != "--text") {
      ++arg;
      continue;
    }
    if (joined) texts.push_back(LabelledText::parse(arg->substr(7)));
    arg = args.erase(arg);
    const std::size_t before = texts.size();
    for (; arg != args.end() && !arg->starts_with("-"); arg = args.erase(arg))
      texts.push_back(LabelledText::parse(*arg));
    require<UsageError>(joined || texts.size() > before, "emox corpus: --text needs a value: write --text LABEL=PATH");
  }
  return texts;
}

void print_table(const CorpusReport& report) {
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
  for (const DomainReport& d : report.domains) {
    const auto dropped = dropped_lines(d);
    if (d.text.files > 0 && !dropped.empty()) fmt::print("{}: dropped {}\n", d.label, fmt::join(dropped, ", "));
  }
  fmt::print("{} domain{}, {:.1f} MB of training text in {} ({:.0f} s)\n", report.domains.size(),
             report.domains.size() == 1 ? "" : "s", static_cast<double>(bytes) / 1e6, report.output, report.seconds);
  if (!report.domains.empty() && report.domains[0].text.files > 0)
    for (const std::string& line : source_lines(report)) fmt::print("  --data.source={}\n", line);
}

}  // namespace

int run_corpus(const std::vector<std::string>& args) {
  std::vector<std::string> others = args;
  const std::vector<LabelledText> texts = take_texts(others);
  const Arguments a = parse_args(others, {.command = "emox corpus",
                                          .flags = {"--json", "--force", "--keep-packages"},
                                          .options = {"--output", "--bytes-per-domain", "--packages", "--text"}});
  CorpusOptions options;
  options.output = a.value("--output", texts.empty() ? options.output : "");
  options.download_directory = a.value("--packages");
  options.keep_packages = a.has("--keep-packages");
  options.force = a.has("--force");
  if (a.has("--bytes-per-domain"))
    options.bytes_per_domain = positive("--bytes-per-domain", a.value("--bytes-per-domain"));
  if (!texts.empty()) {
    for (const char* option : {"--bytes-per-domain", "--packages", "--keep-packages"})
      require<UsageError>(!a.has(option), "emox corpus: {} is for the standard domains, not for --text", option);
  }
  Log log;
  const CorpusReport report =
      texts.empty() ? build_corpus(options, log) : build_text_corpus({options.output, texts, options.force}, log);
  if (a.has("--json"))
    fmt::print("{}\n", json_text(to_json(report)));
  else
    print_table(report);
  return kDone;
}

}  // namespace emox
