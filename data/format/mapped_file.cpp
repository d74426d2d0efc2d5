#include "data/format/mapped_file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "runtime/core/error.h"

namespace emox {

MappedFile::MappedFile(const std::filesystem::path& path) : path_(path) {
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  require<UsageError>(fd >= 0, "cannot open {}: {}; check the path in the recipe", path.string(), std::strerror(errno));
  struct stat info {};
  const bool regular = ::fstat(fd, &info) == 0 && S_ISREG(info.st_mode);
  size_ = regular ? static_cast<std::size_t>(info.st_size) : 0;
  void* memory = size_ > 0 ? ::mmap(nullptr, size_, PROT_READ, MAP_PRIVATE, fd, 0) : MAP_FAILED;
  const int cause = errno;
  ::close(fd);  // the mapping keeps the file open
  require<UsageError>(regular, "{} is not a regular file", path.string());
  require<UsageError>(size_ > 0, "{} is empty (0 bytes): build or copy it again", path.string());
  require<UsageError>(memory != MAP_FAILED, "cannot map {} ({} bytes): {}", path.string(), size_, std::strerror(cause));
  data_ = static_cast<const std::byte*>(memory);
}

MappedFile::~MappedFile() {
  if (data_ != nullptr) ::munmap(const_cast<std::byte*>(data_), size_);
}

}  // namespace emox
