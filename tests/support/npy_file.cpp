#include "tests/support/npy_file.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <fstream>
#include <iterator>
#include <stdexcept>
#include <string_view>

#include "runtime/core/idx.h"

namespace emox::test {

void fail_file(const std::filesystem::path& file, const std::string& why) {
  throw std::runtime_error(fmt::format("{}: {}", file.string(), why));
}

std::string read_whole_file(const std::filesystem::path& file) {
  std::ifstream in(file, std::ios::binary);
  if (!in) fail_file(file, "cannot be opened");
  return {std::istreambuf_iterator<char>(in), {}};
}

namespace {

// The text behind `key` in the header's Python dictionary.
std::string_view header_value(const std::filesystem::path& file, std::string_view header, std::string_view key) {
  const std::size_t at = header.find(fmt::format("'{}':", key));
  if (at == std::string_view::npos) fail_file(file, fmt::format("the header has no '{}'", key));
  std::string_view value = header.substr(at + key.size() + 3);
  value.remove_prefix(std::min(value.find_first_not_of(' '), value.size()));
  return value;
}

template <typename From, typename To>
std::vector<To> converted(const std::string& bytes) {
  std::vector<From> from(bytes.size() / sizeof(From));
  if (!from.empty()) std::memcpy(from.data(), bytes.data(), bytes.size());
  return {from.begin(), from.end()};
}

}  // namespace

Npy read_npy(const std::filesystem::path& file) {
  const std::string all = read_whole_file(file);
  constexpr std::size_t kPreamble = 10;
  if (all.size() < kPreamble || all.compare(0, 8, std::string_view("\x93NUMPY\x01\x00", 8)) != 0)
    fail_file(file, "is no .npy of version 1.0");
  const std::size_t length = static_cast<unsigned char>(all[8]) + 256U * static_cast<unsigned char>(all[9]);
  if (all.size() < kPreamble + length) fail_file(file, "ends inside its header");
  const std::string_view header = std::string_view(all).substr(kPreamble, length);
  Npy npy;
  const std::string_view descr = header_value(file, header, "descr");
  if (descr.size() < 5 || descr[0] != '\'' || (descr[1] != '<' && descr[1] != '|') || descr[4] != '\'')
    fail_file(file, "is not little-endian");
  npy.type = descr.substr(2, 2);
  if (header_value(file, header, "fortran_order").substr(0, 5) != "False") fail_file(file, "is not in C order");
  std::string_view shape = header_value(file, header, "shape");
  shape = shape.substr(0, shape.find(')'));
  std::int64_t numel = 1;
  for (std::size_t i = 0; i < shape.size();) {
    if (shape[i] < '0' || shape[i] > '9') {
      ++i;
      continue;
    }
    std::size_t digits = 0;
    npy.shape.push_back(std::stoll(std::string(shape.substr(i)), &digits));
    numel *= npy.shape.back();
    i += digits;
  }
  npy.bytes = all.substr(kPreamble + length);
  const std::size_t want = idx(numel) * idx(npy.type[1] - '0');
  if (npy.bytes.size() != want)
    fail_file(file, fmt::format("holds {} bytes of elements, its shape needs {}", npy.bytes.size(), want));
  return npy;
}

std::vector<double> reals_of(const std::filesystem::path& file, const Npy& npy) {
  if (npy.type == "f8") return converted<double, double>(npy.bytes);
  if (npy.type == "f4") return converted<float, double>(npy.bytes);
  fail_file(file, fmt::format("holds {}, expected f4 or f8", npy.type));
}

std::vector<std::int64_t> whole_numbers_of(const std::filesystem::path& file, const Npy& npy) {
  if (npy.type == "i4") return converted<std::int32_t, std::int64_t>(npy.bytes);
  if (npy.type == "i8") return converted<std::int64_t, std::int64_t>(npy.bytes);
  if (npy.type == "u1") return converted<std::uint8_t, std::int64_t>(npy.bytes);
  fail_file(file, fmt::format("holds {}, expected i4, i8 or u1", npy.type));
}

// The name that case.json has for an element type.
std::string type_name(const std::string& type) {
  const int bits = 8 * (type[1] - '0');
  return fmt::format("{}{}", type[0] == 'f' ? "float" : type[0] == 'u' ? "uint" : "int", bits);
}

}  // namespace emox::test
