#include "launch/config/shared_files.h"

#include <algorithm>
#include <system_error>

namespace emox {
namespace fs = std::filesystem;

fs::path shared_folder(const std::string& folder) {
  std::error_code none;
  const fs::path place = fs::read_symlink("/proc/self/exe", none).parent_path();
  if (none) return {};
  // PREFIX/bin or /libexec; BUILD/PRESET/launch or /tests.
  const fs::path tree = place.parent_path().parent_path().parent_path();
  for (const fs::path& candidate :
       {place.parent_path() / "share" / "emox" / folder, tree / "launch" / folder, tree / folder})
    if (fs::is_directory(candidate, none)) return candidate;
  return {};
}

std::vector<fs::path> shared_files(const std::string& folder, const std::string& extension) {
  const fs::path place = shared_folder(folder);
  std::vector<fs::path> files;
  if (place.empty()) return files;
  std::error_code none;
  for (const auto& entry : fs::directory_iterator(place, none))
    if (entry.path().extension() == extension) files.push_back(entry.path());
  std::sort(files.begin(), files.end());
  return files;
}

}  // namespace emox
