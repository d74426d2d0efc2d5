// Files that come with emox and are read at run time, found from where the program lies: share/emox/FOLDER of an
// installation or a package, launch/FOLDER (or FOLDER at the top) of the tree that it was built in.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

namespace emox {

/// The folder's path; empty where there is none.
std::filesystem::path shared_folder(const std::string& folder);
/// Its files of this extension (".json"), by name; empty where there are none.
std::vector<std::filesystem::path> shared_files(const std::string& folder, const std::string& extension);

}  // namespace emox
