#include "model/interchange/safetensors.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <cerrno>
#include <cstring>
#include <utility>

#include "model/interchange/safetensors_header.h"
#include "runtime/core/error.h"
#include "runtime/core/idx.h"
#include "runtime/files/atomic_file.h"

namespace emox {
namespace {

static_assert(std::endian::native == std::endian::little, "safetensors data is read without swapping bytes");

/// The reference implementation's limit on a header.
constexpr std::uint64_t kMaxHeader = 100'000'000;
constexpr std::size_t kLengthBytes = 8;

/// Elements are copied because the format promises no alignment.
template <typename From, typename To, typename Convert>
void convert_elements(const std::byte* from, std::vector<To>& to, Convert convert) {
  for (std::size_t i = 0; i < to.size(); ++i) {
    From value;
    std::memcpy(&value, from + i * sizeof(From), sizeof(From));
    to[i] = convert(value);
  }
}

/// BF16 is the upper half of an F32.
float from_bf16(std::uint16_t bits) { return std::bit_cast<float>(static_cast<std::uint32_t>(bits) << 16); }

}  // namespace

std::int64_t SafetensorInfo::numel() const {
  std::int64_t n = 1;
  for (const std::int64_t extent : shape) n *= extent;
  return n;
}

SafetensorsFile::SafetensorsFile(const std::filesystem::path& path) : path_(path), map_(path) {
  try {
    parse_header();
  } catch (const IoError& e) {
    fail<IoError>("{}: {}", path_.string(), e.message());
  }
}

SafetensorsFile::Mapping::~Mapping() { munmap(const_cast<std::byte*>(data_), bytes_); }

SafetensorsFile::Mapping::Mapping(const std::filesystem::path& path) {
  const int fd = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  require<IoError>(fd >= 0, "cannot open {}: {}", path.string(), std::strerror(errno));
  struct stat status {};
  const bool known = fstat(fd, &status) == 0;
  bytes_ = known ? idx(status.st_size) : 0;
  const bool enough = known && S_ISREG(status.st_mode) && bytes_ >= kLengthBytes;
  void* map = enough ? mmap(nullptr, bytes_, PROT_READ, MAP_PRIVATE, fd, 0) : MAP_FAILED;
  const int error = errno;
  close(fd);
  require<IoError>(enough, "{}: not a safetensors file: {} bytes, a header takes at least {}", path.string(), bytes_,
                   kLengthBytes);
  require<IoError>(map != MAP_FAILED, "cannot map {}: {}", path.string(), std::strerror(error));
  data_ = static_cast<const std::byte*>(map);
}

void SafetensorsFile::parse_header() {
  std::uint64_t length = 0;
  std::memcpy(&length, map_.data(), kLengthBytes);
  const std::size_t rest = map_.bytes() - kLengthBytes;
  require<IoError>(length <= kMaxHeader, "its header claims {} bytes, more than the {} that are allowed", length,
                   kMaxHeader);
  require<IoError>(length <= rest, "its header claims {} bytes, but only {} follow", length, rest);
  const std::string_view text(reinterpret_cast<const char*>(map_.data() + kLengthBytes), length);
  SafetensorsHeader header = parse_safetensors_header(text, rest - length);
  data_ = map_.data() + kLengthBytes + length;
  tensors_ = std::move(header.tensors);
  metadata_ = std::move(header.metadata);
}

std::vector<std::string> SafetensorsFile::names() const {
  std::vector<std::string> names;
  for (const auto& entry : tensors_) names.push_back(entry.first);
  return names;
}

const SafetensorInfo& SafetensorsFile::info(const std::string& name) const {
  const auto found = tensors_.find(name);
  require<IoError>(found != tensors_.end(), "{} has no tensor {}", path_.string(), name);
  return found->second;
}

template <typename To>
std::vector<To> SafetensorsFile::read_floating(const std::string& name) const {
  const SafetensorInfo& t = info(name);
  std::vector<To> values(idx(t.numel()));
  const auto cast = [](auto value) { return static_cast<To>(value); };
  if (t.dtype == "F32")
    convert_elements<float>(bytes_of(t), values, cast);
  else if (t.dtype == "F64")
    convert_elements<double>(bytes_of(t), values, cast);
  else if (t.dtype == "BF16")
    convert_elements<std::uint16_t>(bytes_of(t), values, [](auto b) { return To{from_bf16(b)}; });
  else
    fail<IoError>("{}: tensor {} holds {}; F32, F64 and BF16 can be read as numbers", path_.string(), name, t.dtype);
  return values;
}

std::vector<float> SafetensorsFile::read_f32(const std::string& name) const { return read_floating<float>(name); }
std::vector<double> SafetensorsFile::read_f64(const std::string& name) const { return read_floating<double>(name); }

std::vector<std::int64_t> SafetensorsFile::read_i64(const std::string& name) const {
  const SafetensorInfo& t = info(name);
  std::vector<std::int64_t> values(idx(t.numel()));
  const auto widen = [](auto value) { return static_cast<std::int64_t>(value); };
  if (t.dtype == "I64")
    convert_elements<std::int64_t>(bytes_of(t), values, widen);
  else if (t.dtype == "I32")
    convert_elements<std::int32_t>(bytes_of(t), values, widen);
  else if (t.dtype == "U8")
    convert_elements<std::uint8_t>(bytes_of(t), values, widen);
  else
    fail<IoError>("{}: tensor {} holds {}; I64, I32 and U8 can be read as integers", path_.string(), name, t.dtype);
  return values;
}

void write_safetensors(const std::filesystem::path& path, std::span<const SafetensorEntry> entries,
                       const std::map<std::string, std::string>& metadata) {
  // Wide types first: with the padded header every element is then aligned for readers that map the file.
  std::vector<const SafetensorEntry*> order;
  for (const SafetensorEntry& e : entries) order.push_back(&e);
  std::stable_sort(order.begin(), order.end(), [](const auto* a, const auto* b) {
    return safetensors_dtype_size(a->dtype) > safetensors_dtype_size(b->dtype);
  });
  SafetensorsHeader header{{}, metadata};
  std::size_t at = 0;
  for (const SafetensorEntry* e : order) {
    const std::size_t wanted = safetensors_bytes(e->name, e->dtype, e->shape);
    require<ShapeError>(e->bytes.size() == wanted, "tensor {} has {} bytes, its shape and type {} need {}", e->name,
                        e->bytes.size(), e->dtype, wanted);
    require<ShapeError>(e->name != "__metadata__", "a tensor cannot be called {}", e->name);
    const bool fresh = header.tensors.try_emplace(e->name, SafetensorInfo{e->dtype, e->shape, at, at + wanted}).second;
    require<ShapeError>(fresh, "tensor {} is to be written twice", e->name);
    at += wanted;
  }
  const std::string text = safetensors_header_text(header);
  const std::uint64_t length = text.size();
  AtomicFile file(path);
  file.write(std::as_bytes(std::span(&length, 1)));
  file.write(text);
  for (const SafetensorEntry* e : order) file.write(e->bytes);
  file.commit();
}

}  // namespace emox
