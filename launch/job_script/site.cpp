#include "launch/job_script/site.h"

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <regex>
#include <sstream>

#include "launch/config/nearest.h"
#include "launch/config/shared_files.h"
#include "runtime/core/error.h"
#include "runtime/files/files.h"

namespace emox {
namespace {

namespace fs = std::filesystem;

// What the template needs, and what its values may be.
struct Variable {
  const char* name;
  const char* allowed;  ///< a pattern
  const char* meaning;
};
constexpr Variable kVariables[] = {
    {"EMOX_LAUNCH", "\\S.*", "the command that starts the ranks, for example srun --mpi=pmix"},
    {"EMOX_BIND", ".*", "options of that command"},
    {"EMOX_SBATCH", "(\\s*-\\S+)*\\s*", "options of sbatch, each in one word: --account=X"},
    {"EMOX_GPUS", "(\\s*-\\S+)*\\s*", "options of sbatch, each in one word: --gpus-per-node={ranks}"},
    {"EMOX_MODULES", ".*", "modules"},
    {"EMOX_SIGNAL", "USR1|USR2", "USR1 or USR2"},
    {"EMOX_REQUEUE", "requeue|chain|none", "requeue, chain or none"},
    {"EMOX_MAX_RESTARTS", "[0-9]{1,6}", "a whole number"},
    {"EMOX_MAX_FAILURES", "[1-9][0-9]{0,5}", "a whole number from 1 on"},
    {"EMOX_PAUSE_S", "[0-9]{1,6}", "whole seconds"},
    {"EMOX_WAIT_S", "[0-9]{1,6}", "whole seconds"},
};

fs::path this_program() {
  std::error_code error;
  fs::path self = fs::read_symlink("/proc/self/exe", error);
  require<UsageError>(!error, "cannot tell where this emox lies: {}", error.message());
  return self;
}

std::vector<std::string> words_of(const std::string& text) {
  std::istringstream in(text);
  std::vector<std::string> words;
  for (std::string word; in >> word;) words.push_back(word);
  return words;
}

void check_commands(const Site& site) {
  if (!is_on_path("sbatch") || !words_of(site.value("EMOX_MODULES")).empty()) return;
  std::vector<std::string> commands{words_of(site.value("EMOX_LAUNCH")).front()};
  if (site.value("EMOX_REQUEUE") == "requeue") commands.emplace_back("scontrol");
  for (const std::string& command : commands)
    require<UsageError>(is_on_path(command),
                        "{}: there is no command {} here ({}); name one that is, or the modules that bring it with "
                        "EMOX_MODULES",
                        site.file.string(), command,
                        command == "scontrol" ? "EMOX_REQUEUE = requeue needs it"
                                              : fmt::format("EMOX_LAUNCH = {}", site.value("EMOX_LAUNCH")));
}

}  // namespace

std::vector<std::string> Site::words(const std::string& name) const { return words_of(value(name)); }

Site read_site(const fs::path& file) {
  Site site;
  site.file = file;
  const TextOrError read = try_read_text(file);
  require<UsageError>(read.error == 0, "cannot read {}: {}; name the site's file with --site=FILE or EMOX_SITE",
                      file.string(), std::strerror(read.error));
  site.text = read.text;
  std::vector<std::string> known;
  for (const Variable& v : kVariables) known.emplace_back(v.name);
  static const std::regex assignment(R"(\s*(?:export\s+)?(EMOX_[A-Za-z0-9_]*)=(.*))");
  static const std::regex value(R"re((?:"([^"$`\\]*)"|'([^']*)'|([^\s"'$`\\#;&|]*))\s*(?:#.*)?)re");
  std::istringstream lines(read.text);
  std::string line;
  for (int number = 1; std::getline(lines, line); ++number) {
    std::smatch set, plain;
    if (!std::regex_match(line, set, assignment)) continue;
    const std::string name = set[1], text = set[2];
    require<UsageError>(std::find(known.begin(), known.end(), name) != known.end(),
                        "{}:{}: {} is no variable of a site: did you mean {}?", file.string(), number, name,
                        nearest(name, known));
    require<UsageError>(std::regex_match(text, plain, value),
                        "{}:{}: {}={} cannot be read by emox: write one value in quotes, without variables in it",
                        file.string(), number, name, text);
    site.values[name] = plain[1].str() + plain[2].str() + plain[3].str();
  }
  for (const Variable& v : kVariables) {
    require<UsageError>(site.values.contains(v.name), "{}: {} is missing: it is {}", file.string(), v.name, v.meaning);
    require<UsageError>(std::regex_match(site.values[v.name], std::regex(v.allowed)), "{}: {} = \"{}\": use {}",
                        file.string(), v.name, site.values[v.name], v.meaning);
  }
  check_commands(site);
  return site;
}

fs::path find_site(const std::string& given) {
  if (!given.empty()) return given;
  if (const char* named = std::getenv("EMOX_SITE"); named != nullptr && *named != '\0') return named;
  return shared_file("site.env");
}

fs::path shared_file(const std::string& name) {
  const fs::path folder = shared_folder("slurm");
  fs::path file = folder / name;
  require<UsageError>(!folder.empty() && fs::exists(file),
                      "share/emox/slurm/{} is missing: it comes with emox, beside the folder of the program", name);
  return file;
}

fs::path own_program() {
  // A folder that was packed with its libraries starts the program through bin/emox.
  fs::path self = this_program();
  const char* home = std::getenv("EMOX_HOME");
  if (home != nullptr && self.parent_path() == fs::path(home) / "libexec") return fs::path(home) / "bin" / "emox";
  return self;
}

bool is_on_path(const std::string& program) {
  if (program.find('/') != std::string::npos) return access(program.c_str(), X_OK) == 0;
  const char* path = std::getenv("PATH");
  std::istringstream in(path == nullptr ? "" : path);
  for (std::string folder; std::getline(in, folder, ':');)
    if (access((folder.empty() ? program : folder + "/" + program).c_str(), X_OK) == 0) return true;
  return false;
}

}  // namespace emox
