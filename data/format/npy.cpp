#include "data/format/npy.h"

#include <algorithm>
#include <array>
#include <bit>
#include <charconv>
#include <cstring>
#include <optional>
#include <string_view>

#include "runtime/core/error.h"
#include "runtime/core/idx.h"
#include "runtime/files/atomic_file.h"

namespace emox {
namespace {

static_assert(std::endian::native == std::endian::little, "token files are little-endian and read without conversion");

constexpr std::string_view kMagic = "\x93NUMPY";
constexpr std::array kTypes = {NpyType::U2, NpyType::U4, NpyType::I4, NpyType::I8};

/// The text after `'key':` in the header's dictionary, without leading blanks; nothing if the key is not there.
std::optional<std::string_view> value_of(std::string_view dictionary, std::string_view key) {
  const std::string quoted = fmt::format("'{}':", key);
  const auto at = dictionary.find(quoted);
  if (at == std::string_view::npos) return std::nullopt;
  const std::string_view rest = dictionary.substr(at + quoted.size());
  const auto start = rest.find_first_not_of(' ');
  return start == std::string_view::npos ? std::string_view{} : rest.substr(start);
}

NpyType parse_type(std::string_view dictionary, const std::string& name) {
  const auto value = value_of(dictionary, "descr");
  require<UsageError>(value && value->size() >= 2 && value->front() == '\'',
                      "{}: the .npy header has no simple 'descr': {}", name, dictionary);
  const std::string_view text = value->substr(1, value->find('\'', 1) - 1);
  for (const NpyType type : kTypes) {
    if (text == name_of(type)) return type;
  }
  fail<UsageError>(
      "{}: element type '{}' is not supported; token files hold <u2, <u4, <i4 or <i8 (little-endian integers)", name,
      text);
}

std::int64_t parse_count(std::string_view dictionary, const std::string& name) {
  const auto value = value_of(dictionary, "shape");
  const auto close = value ? value->find(')') : std::string_view::npos;
  require<UsageError>(value && value->starts_with('(') && close != std::string_view::npos,
                      "{}: the .npy header has no 'shape': {}", name, dictionary);
  const std::string_view shape = value->substr(0, close + 1);
  std::int64_t count = -1;
  const auto [end, error] = std::from_chars(shape.data() + 1, shape.data() + shape.size(), count);
  const std::string_view tail(end, idx(shape.data() + shape.size() - end));
  require<UsageError>(error == std::errc{} && count >= 0 && tail == ",)",
                      "{}: shape {} is not one-dimensional; flatten the array before saving it", name, shape);
  return count;
}

/// Where the dictionary begins and how long it is, by the version's length field.
std::string_view header_text(std::span<const std::byte> file, const std::string& name) {
  const auto* raw = reinterpret_cast<const char*>(file.data());
  require<UsageError>(file.size() >= 12, "{}: truncated .npy header ({} bytes)", name, file.size());
  const int major = static_cast<unsigned char>(raw[6]);
  require<UsageError>(major == 1 || major == 2, "{}: .npy format version {} is not supported, expected 1.0 or 2.0",
                      name, major);
  std::uint32_t length = 0;
  std::size_t start = 12;
  if (major == 1) {
    std::uint16_t short_length = 0;
    std::memcpy(&short_length, raw + 8, sizeof short_length);
    length = short_length;
    start = 10;
  } else {
    std::memcpy(&length, raw + 8, sizeof length);
  }
  require<UsageError>(start + length <= file.size(),
                      "{}: truncated .npy header: it claims {} bytes, but only {} are there or looked at", name,
                      start + length, file.size());
  return {raw + start, length};
}

template <typename T>
void write(const std::filesystem::path& path, std::span<const T> values, NpyType type) {
  std::string text =
      fmt::format("{{'descr': '{}', 'fortran_order': False, 'shape': ({},), }}", name_of(type), values.size());
  // NumPy pads with blanks so that the data begin at a multiple of 64.
  const std::size_t unpadded = 10 + text.size() + 1;
  text.append((64 - unpadded % 64) % 64, ' ');
  text += '\n';
  const auto length = static_cast<std::uint16_t>(text.size());
  std::string header(kMagic);
  header += '\x01';
  header += '\x00';
  header += static_cast<char>(length & 0xFF);
  header += static_cast<char>(length >> 8);
  header += text;
  const std::array parts = {std::as_bytes(std::span<const char>(header)), std::as_bytes(values)};
  write_file_atomically(path, parts);
}

template <typename T>
void widen(std::span<const std::byte> from, std::int64_t* to) {
  for (std::size_t i = 0; i < from.size() / sizeof(T); ++i) {
    T value;
    std::memcpy(&value, from.data() + i * sizeof(T), sizeof(T));
    to[i] = static_cast<std::int64_t>(value);
  }
}

}  // namespace

std::size_t size_of(NpyType type) {
  switch (type) {
    case NpyType::U2:
      return 2;
    case NpyType::U4:
    case NpyType::I4:
      return 4;
    case NpyType::I8:
      return 8;
  }
  return 0;
}

const char* name_of(NpyType type) {
  switch (type) {
    case NpyType::U2:
      return "<u2";
    case NpyType::U4:
      return "<u4";
    case NpyType::I4:
      return "<i4";
    case NpyType::I8:
      return "<i8";
  }
  return "?";
}

bool is_npy(std::span<const std::byte> file) {
  return file.size() >= kMagic.size() && std::memcmp(file.data(), kMagic.data(), kMagic.size()) == 0;
}

NpyHeader parse_npy_header(std::span<const std::byte> head, std::int64_t bytes, const std::string& name) {
  require<UsageError>(is_npy(head), "{}: not an .npy file", name);
  const std::string_view text = header_text(head, name);
  const auto order = value_of(text, "fortran_order");
  require<UsageError>(order && order->starts_with("False"),
                      "{}: the array must be in C order ('fortran_order': False): {}", name, text);
  NpyHeader header;
  header.type = parse_type(text, name);
  header.count = parse_count(text, name);
  header.offset = idx(text.data() + text.size() - reinterpret_cast<const char*>(head.data()));
  const std::size_t present = idx(bytes) - header.offset;
  const std::size_t item = size_of(header.type);
  require<UsageError>(
      idx(header.count) <= present / item,
      "{}: truncated: the header promises {} elements of {} bytes, the file holds {} bytes; copy it again", name,
      header.count, item, present);
  require<UsageError>(idx(header.count) * item == present,
                      "{}: the header promises {} elements of {} bytes, but {} bytes follow; the file is damaged", name,
                      header.count, item, present);
  return header;
}

std::optional<NpyHeader> read_npy_header(const StoredFile& file) {
  std::vector<std::byte> head(idx(std::min(file.bytes(), kNpyHead)));
  file.read(0, head);
  if (!is_npy(head)) return std::nullopt;
  return parse_npy_header(head, file.bytes(), file.path().string());
}

void write_npy(const std::filesystem::path& path, std::span<const std::uint16_t> values) {
  write(path, values, NpyType::U2);
}
void write_npy(const std::filesystem::path& path, std::span<const std::uint32_t> values) {
  write(path, values, NpyType::U4);
}
void write_npy(const std::filesystem::path& path, std::span<const std::int64_t> values) {
  write(path, values, NpyType::I8);
}

void widen(std::span<const std::byte> from, NpyType type, std::int64_t* to) {
  switch (type) {
    case NpyType::U2:
      return widen<std::uint16_t>(from, to);
    case NpyType::U4:
      return widen<std::uint32_t>(from, to);
    case NpyType::I4:
      return widen<std::int32_t>(from, to);
    case NpyType::I8:
      return widen<std::int64_t>(from, to);
  }
}

std::vector<std::int64_t> read_integers(const StoredFile& file, NpyType type, std::int64_t offset, std::int64_t begin,
                                        std::int64_t count) {
  const auto item = static_cast<std::int64_t>(size_of(type));
  std::vector<std::int64_t> values(idx(count));
  constexpr std::int64_t kPiece = 1 << 17;  // elements
  std::vector<std::byte> raw(idx(std::min(count, kPiece) * item));
  for (std::int64_t done = 0; done < count;) {
    const std::int64_t n = std::min(count - done, kPiece);
    const std::span<std::byte> piece(raw.data(), idx(n * item));
    file.read(offset + (begin + done) * item, piece);
    widen(piece, type, values.data() + done);
    done += n;
  }
  return values;
}

std::vector<std::int64_t> read_npy_integers(const std::filesystem::path& path) {
  const StoredFile file(path);
  const auto header = read_npy_header(file);
  require<UsageError>(header.has_value(), "{}: not an .npy file", path.string());
  return read_integers(file, header->type, static_cast<std::int64_t>(header->offset), 0, header->count);
}

}  // namespace emox
