// slurm/site.env: what a site decides about its jobs. Job scripts get the file as it is; emox reads a few values of it.
#pragma once

#include <filesystem>
#include <map>
#include <string>
#include <vector>

namespace emox {

struct Site {
  std::filesystem::path file;
  std::string text;                           ///< the whole file
  std::map<std::string, std::string> values;  ///< of the lines EMOX_X=value, without quotes

  const std::string& value(const std::string& name) const { return values.at(name); }
  /// Divided at blanks.
  std::vector<std::string> words(const std::string& name) const;
};

/// UsageError naming file, line and variable: one that is missing, unknown, or has a value that cannot be. Where this
/// machine has Slurm (sbatch), a command that it lacks is an error too, unless modules are loaded first.
Site read_site(const std::filesystem::path& file);
/// --site, else EMOX_SITE, else the file that came with emox.
std::filesystem::path find_site(const std::string& given);

/// FILE of share/emox/slurm (launch/config/shared_files.h). UsageError where it is not.
std::filesystem::path shared_file(const std::string& name);
/// How a job script calls this program: its absolute path.
std::filesystem::path own_program();
bool is_on_path(const std::string& program);

}  // namespace emox
