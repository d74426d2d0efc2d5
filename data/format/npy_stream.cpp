#include "data/format/npy_stream.h"

#include <fmt/format.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <string>
#include <type_traits>

#include "runtime/core/error.h"

namespace emox {
namespace {

/// Room for a count of 20 digits; the data begin at a multiple of 64.
constexpr std::size_t kHeaderBytes = 128;

std::string header(NpyType type, std::int64_t count) {
  std::string text = "\x93NUMPY";
  text += '\x01';
  text += '\x00';
  text += static_cast<char>(kHeaderBytes - 10);
  text += '\x00';
  text += fmt::format("{{'descr': '{}', 'fortran_order': False, 'shape': ({},), }}", name_of(type), count);
  text.append(kHeaderBytes - 1 - text.size(), ' ');
  return text + '\n';
}

}  // namespace

template <typename T>
NpyStream<T>::NpyStream(const std::filesystem::path& path)
    : path_(path), file_(std::fopen(path.c_str(), "wbe"), std::fclose) {
  require<IoError>(file_ != nullptr, "cannot create {}: {}", path.string(), std::strerror(errno));
  buffer_.reserve(kBuffered);
  write(std::string(kHeaderBytes, ' ').data(), kHeaderBytes);
}

template <typename T>
void NpyStream<T>::write(const void* bytes, std::size_t count) {
  require<IoError>(std::fwrite(bytes, 1, count, file_.get()) == count,
                   "cannot write {}: {}; check the free space of its file system", path_.string(),
                   std::strerror(errno));
}

template <typename T>
void NpyStream<T>::flush() {
  write(buffer_.data(), buffer_.size() * sizeof(T));
  written_ += static_cast<std::int64_t>(buffer_.size());
  buffer_.clear();
}

template <typename T>
void NpyStream<T>::finish() {
  flush();
  require<IoError>(std::fseek(file_.get(), 0, SEEK_SET) == 0, "cannot write the header of {}: {}", path_.string(),
                   std::strerror(errno));
  const std::string text = header(std::is_same_v<T, std::uint16_t> ? NpyType::U2 : NpyType::I8, written_);
  write(text.data(), text.size());
  const bool whole = std::fflush(file_.get()) == 0 && ::fsync(::fileno(file_.get())) == 0;
  require<IoError>(whole && std::fclose(file_.release()) == 0,
                   "cannot write {}: {}; check the free space of its file system", path_.string(),
                   std::strerror(errno));
}

template class NpyStream<std::uint16_t>;
template class NpyStream<std::int64_t>;

}  // namespace emox
