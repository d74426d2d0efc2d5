#include "launch/job_script/job_script.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cctype>
#include <cstring>
#include <regex>
#include <sstream>
#include <utility>

#include "runtime/core/error.h"
#include "runtime/core/idx.h"
#include "runtime/core/version.h"
#include "runtime/files/files.h"

namespace emox {
namespace {

std::string sbatch_lines(const JobScript& job, const Site& site) {
  std::vector<std::string> options = {"--job-name=" + job.name,
                                      fmt::format("--nodes={}", job.nodes),
                                      fmt::format("--ntasks-per-node={}", job.ranks_per_node),
                                      "--time=" + job.time,
                                      fmt::format("--signal=B:{}@{}", site.value("EMOX_SIGNAL"), job.lead_s),
                                      "--open-mode=append",
                                      "--chdir=" + job.directory};
  const bool array = job.arguments.size() > 1;
  options.push_back(fmt::format("--output={}-{}.log", job.name, array ? "%A_%a" : "%j"));
  if (array) options.push_back(fmt::format("--array=0-{}", job.arguments.size() - 1));
  if (job.threads > 0) options.push_back(fmt::format("--cpus-per-task={}", job.threads));
  options.emplace_back(site.value("EMOX_REQUEUE") == "requeue" ? "--requeue" : "--no-requeue");
  for (const char* more : {"EMOX_GPUS", "EMOX_SBATCH"}) {
    if (std::string_view(more) == "EMOX_GPUS" && !job.gpus) continue;
    for (std::string word : site.words(more)) {
      if (const auto at = word.find("{ranks}"); at != std::string::npos)
        word.replace(at, 7, std::to_string(job.ranks_per_node));
      options.push_back(std::move(word));
    }
  }
  for (std::string& option : options) {
    require<UsageError>(option.find_first_of("\n\"") == std::string::npos,
                        "sbatch cannot take the option {}: no quotes or line ends", option);
    const bool plain = option.find_first_of(" \t#'\\") == std::string::npos;
    option = "#SBATCH " + (plain ? option : "\"" + option + "\"");
  }
  return fmt::format("{}", fmt::join(options, "\n"));
}

std::string set_arguments(const JobScript& job, const std::vector<std::string>& words) {
  std::string line = "set --";
  for (const std::string& word : words) line += " " + shell_quoted(word);
  const bool waits = std::none_of(words.begin(), words.end(), [](const std::string& w) {
    return w == "--run.wait_s" || w.starts_with("--run.wait_s=");
  });
  if (job.kind != JobKind::Eval && waits) line += " \"--run.wait_s=$EMOX_WAIT_S\"";
  return line;
}

std::string arguments_of(const JobScript& job) {
  if (job.arguments.size() == 1) return set_arguments(job, job.arguments.front());
  std::string text = "case ${SLURM_ARRAY_TASK_ID-} in\n";
  for (std::size_t i = 0; i < job.arguments.size(); ++i)
    text += fmt::format("  {}) {} ;;\n", i, set_arguments(job, job.arguments[i]));
  return text + "  *) say \"this script is an array's: sbatch it without --array\"; exit 2 ;;\nesac";
}

std::string preflight_of(JobKind kind) {
  if (kind == JobKind::Eval) return "[[ -d $1 ]] || { say \"$1 is no run\"; exit 2; }\ndir=$1";
  return fmt::format(
      "config=$(\"$emox\" {} \"$@\" --print-config) || exit 2\n"
      "dir=$(sed -n '/^\\[run\\]/,/^\\[model\\]/s/^dir *= *//p' <<<\"$config\")",
      kJobKindNames[idx(kind)]);
}

}  // namespace

std::int64_t seconds_of_time(const std::string& text) {
  static const std::regex forms(
      R"((?:(\d{1,5})-(\d{1,2})(?::(\d{1,2}))?(?::(\d{1,2}))?)|(?:(\d{1,6}):(\d{1,2}):(\d{1,2}))|(?:(\d{1,7})(?::(\d{1,2}))?))");
  std::smatch m;
  require<UsageError>(std::regex_match(text, m, forms),
                      "--time={} is no time of a job: use MINUTES, H:MM:SS or DAYS-HOURS, as for sbatch", text);
  const auto number = [&](std::size_t i) { return m[i].matched ? std::stoll(m[i]) : 0; };
  const std::int64_t seconds = number(1) * 86400 + number(2) * 3600 + number(3) * 60 + number(4) + number(5) * 3600 +
                               number(6) * 60 + number(7) + number(8) * 60 + number(9);
  require<UsageError>(seconds > 0, "--time={}: a job needs some time", text);
  return seconds;
}

std::string shell_quoted(const std::string& word) {
  const auto plain = [](unsigned char c) { return std::isalnum(c) != 0 || std::strchr("_-./=,:+@%", c) != nullptr; };
  if (!word.empty() && std::all_of(word.begin(), word.end(), plain)) return word;
  std::string quoted = "'";
  for (const char c : word) quoted += c == '\'' ? std::string("'\\''") : std::string(1, c);
  return quoted + "'";
}

std::vector<std::vector<std::string>> read_points(const std::string& file) {
  const TextOrError read = try_read_text(file);
  require<UsageError>(read.error == 0, "cannot read --array={}: {}", file, std::strerror(read.error));
  std::vector<std::vector<std::string>> points;
  std::istringstream lines(read.text);
  std::string line;
  for (int number = 1; std::getline(lines, line); ++number) {
    std::vector<std::string> words;
    std::string word;
    bool inside = false;
    char quote = 0;
    for (const char c : line) {
      if (quote != 0 && c == quote) {
        quote = 0;
      } else if (quote == 0 && (c == '"' || c == '\'')) {
        quote = c, inside = true;
      } else if (quote == 0 && std::isspace(static_cast<unsigned char>(c)) != 0) {
        if (inside) words.push_back(std::exchange(word, ""));
        inside = false;
      } else if (quote == 0 && c == '#' && !inside) {
        break;
      } else {
        word += c, inside = true;
      }
    }
    require<UsageError>(quote == 0, "{}:{}: a quote is not closed", file, number);
    if (inside) words.push_back(word);
    if (!words.empty()) points.push_back(std::move(words));
  }
  require<UsageError>(!points.empty(),
                      "--array={} has no points: write one a line, RECIPE.ini [--section.key=value]...", file);
  return points;
}

std::string job_script(const JobScript& job, const Site& site) {
  std::string site_text = site.text;
  while (site_text.ends_with('\n')) site_text.pop_back();
  const std::pair<const char*, std::string> parts[] = {{"@SBATCH@", sbatch_lines(job, site)},
                                                       {"@VERSION@", kVersion},
                                                       {"@LEAD_NOTE@", job.lead_note},
                                                       {"@SITE@", site_text},
                                                       {"@EMOX@", shell_quoted(own_program().string())},
                                                       {"@ARGUMENTS@", arguments_of(job)},
                                                       {"@JOB@", kJobKindNames[idx(job.kind)]},
                                                       {"@LEAD@", std::to_string(job.lead_s)},
                                                       {"@PREFLIGHT@", preflight_of(job.kind)}};
  std::istringstream lines(read_text(shared_file("job.sh")));
  std::string text;
  for (std::string line; std::getline(lines, line);) {
    // Once over the template, so that nothing in a value is taken for one of its marks.
    for (std::size_t at = 0; at < line.size();) {
      const auto* const part = std::find_if(std::begin(parts), std::end(parts), [&](const auto& p) {
        return line.compare(at, std::strlen(p.first), p.first) == 0;
      });
      if (part == std::end(parts)) {
        text += line[at++];
      } else {
        text += part->second;
        at += std::strlen(part->first);
      }
    }
    text += '\n';
  }
  return text;
}

}  // namespace emox
