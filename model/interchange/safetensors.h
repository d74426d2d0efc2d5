// Safetensors files: an 8-byte header length, a JSON header, the tensors' bytes. Everything the header says is checked
// when the file is opened, so that reading cannot leave the file. Little-endian hosts.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace emox {

struct SafetensorInfo {
  std::string dtype;  ///< as in the file: F32, F64, BF16, I64, ...
  std::vector<std::int64_t> shape;
  std::size_t begin = 0;  ///< bytes [begin, end) behind the header
  std::size_t end = 0;
  std::int64_t numel() const;
};

/// An open file, mapped into memory. Every failure is an IoError that names the file, and the tensor where there is
/// one.
class SafetensorsFile {
 public:
  explicit SafetensorsFile(const std::filesystem::path& path);

  /// In alphabetical order.
  std::vector<std::string> names() const;
  bool contains(const std::string& name) const { return tensors_.count(name) != 0; }
  const SafetensorInfo& info(const std::string& name) const;
  /// The header's free texts (`__metadata__`).
  const std::map<std::string, std::string>& metadata() const { return metadata_; }

  /// The elements of an F32, F64 or BF16 tensor; read_f32 rounds F64.
  std::vector<float> read_f32(const std::string& name) const;
  std::vector<double> read_f64(const std::string& name) const;
  /// The elements of an I64, I32 or U8 tensor.
  std::vector<std::int64_t> read_i64(const std::string& name) const;

 private:
  /// The whole file in memory, read only.
  class Mapping {
   public:
    explicit Mapping(const std::filesystem::path& path);
    ~Mapping();
    Mapping(const Mapping&) = delete;
    Mapping& operator=(const Mapping&) = delete;
    const std::byte* data() const { return data_; }
    std::size_t bytes() const { return bytes_; }

   private:
    const std::byte* data_ = nullptr;
    std::size_t bytes_ = 0;
  };

  void parse_header();
  template <typename To>
  std::vector<To> read_floating(const std::string& name) const;
  const std::byte* bytes_of(const SafetensorInfo& info) const { return data_ + info.begin; }

  std::filesystem::path path_;
  Mapping map_;
  const std::byte* data_ = nullptr;  ///< first byte behind the header
  std::map<std::string, SafetensorInfo> tensors_;
  std::map<std::string, std::string> metadata_;
};

/// A tensor to write: host bytes that somebody else owns.
struct SafetensorEntry {
  std::string name;
  std::string dtype;
  std::vector<std::int64_t> shape;
  std::span<const std::byte> bytes;
};

inline SafetensorEntry f32_entry(std::string name, std::vector<std::int64_t> shape, std::span<const float> values) {
  return {std::move(name), "F32", std::move(shape), std::as_bytes(values)};
}

/// Writes the file and syncs it; it appears under its name only when complete. ShapeError for an entry whose bytes do
/// not fit its shape, or whose name comes twice.
void write_safetensors(const std::filesystem::path& path, std::span<const SafetensorEntry> entries,
                       const std::map<std::string, std::string>& metadata = {});

}  // namespace emox
