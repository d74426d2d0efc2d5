// XXH3-128 of memory and of files, as 32 hexadecimal digits.
#pragma once

#include <cstddef>
#include <filesystem>
#include <memory>
#include <string>

struct XXH3_state_s;

namespace emox {

/// Of bytes that come one piece after another.
class Checksum {
 public:
  Checksum();
  void update(const void* data, std::size_t bytes);
  /// Of all bytes so far.
  std::string hex() const;

 private:
  struct Free {
    void operator()(XXH3_state_s* state) const;
  };
  std::unique_ptr<XXH3_state_s, Free> state_;
};

std::string checksum_of(const void* data, std::size_t bytes);
inline std::string checksum_of(const std::string& text) { return checksum_of(text.data(), text.size()); }

/// Of a whole file, read in pieces. Fails as fail_to_read (file_error.h).
std::string checksum_of_file(const std::filesystem::path& path);

}  // namespace emox
