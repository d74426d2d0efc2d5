// Bytes that steer edits of a manifest, so that a fuzzer's inputs reach what lies behind its checksum.
#pragma once

#include <cstddef>
#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <span>
#include <string>

namespace emox::test {

/// A fuzzer's bytes, taken one after another; zeros when they have run out.
class Steer {
 public:
  explicit Steer(std::span<const std::uint8_t> bytes) : bytes_(bytes) {}
  bool done() const { return bytes_.empty(); }
  std::uint8_t byte();
  /// In [0, n), n at most 65536.
  std::size_t below(std::size_t n);
  std::string rest();

 private:
  std::span<const std::uint8_t> bytes_;
};

/// Changes the content in ways that a faulty writer, or somebody with an editor, might: members lost, doubled, moved
/// and of another type, extreme numbers, other texts, arrays cut into more pieces. Very deep nesting is left as a mark
/// in the text, see edited_text: the library cannot print it.
void edit_content(nlohmann::json& content, Steer& steer);

/// The signed text of the content, its marks replaced by the nesting they stand for, after edits of the text itself.
std::string edited_text(const nlohmann::json& content, Steer& steer);

/// Text that begins as a manifest does, with the checksum that fits the rest put in; any other text as it is.
std::string signed_again(std::string text);

}  // namespace emox::test
