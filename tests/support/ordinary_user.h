// For tests of what may not be read: root may read everything.
#pragma once

#include <unistd.h>

#include <cstdlib>
#include <filesystem>

namespace emox::test {

/// While it lives, this process has the rights of a user who owns nothing; of its own where it is not root's anyway.
class OrdinaryUser {
 public:
  OrdinaryUser() : before_(geteuid()) {
    if (before_ == 0 && seteuid(kNobody) != 0) std::abort();
  }
  ~OrdinaryUser() {
    if (before_ == 0 && seteuid(0) != 0) std::abort();
  }
  OrdinaryUser(const OrdinaryUser&) = delete;
  OrdinaryUser& operator=(const OrdinaryUser&) = delete;

  /// Makes the directory and what is below it such a user's, so that only modes set later keep it out.
  static void give(const std::filesystem::path& directory) {
    if (geteuid() != 0) return;
    const auto own = [](const std::filesystem::path& path) {
      if (lchown(path.c_str(), kNobody, static_cast<gid_t>(-1)) != 0) std::abort();
    };
    own(directory);
    for (const auto& entry : std::filesystem::recursive_directory_iterator(directory)) own(entry.path());
  }

 private:
  static constexpr uid_t kNobody = 65534;
  const uid_t before_;
};

}  // namespace emox::test
