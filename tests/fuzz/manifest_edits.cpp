#include "tests/fuzz/manifest_edits.h"

#include <algorithm>
#include <array>
#include <climits>
#include <nlohmann/json.hpp>
#include <utility>
#include <vector>

#include "parallel/checkpoint/checksum.h"
#include "parallel/checkpoint/manifest.h"

namespace emox::test {
namespace {

using nlohmann::json;

constexpr std::string_view kHead = "{\n \"checksum\": \"";
constexpr std::size_t kDigits = 32;
constexpr std::size_t kRest = kHead.size() + kDigits + 3;  // behind the digits: ",\n
constexpr std::string_view kDeepArrays = "@deep arrays@", kDeepObjects = "@deep objects@";

json extreme_number(Steer& steer) {
  static const std::vector<json> numbers = {0,
                                            1,
                                            -1,
                                            2,
                                            7,
                                            12,
                                            13,
                                            INT_MAX,
                                            INT_MAX + 1LL,
                                            UINT_MAX,
                                            1LL << 32,
                                            1LL << 53,
                                            1LL << 60,
                                            INT64_MAX - 1,
                                            INT64_MAX,
                                            INT64_MIN,
                                            static_cast<std::uint64_t>(INT64_MAX) + 1,
                                            UINT64_MAX,
                                            0.5,
                                            -0.0,
                                            1e308,
                                            12.0};
  if (steer.below(3) == 0) return steer.below(14);
  return numbers[steer.below(numbers.size())];
}

json other_text(Steer& steer) {
  static const std::vector<std::string> texts = {"",
                                                 ".",
                                                 "..",
                                                 "/",
                                                 "//",
                                                 "/x",
                                                 "/x/weight",
                                                 "/x/weight.from-7",
                                                 "../x.h5",
                                                 "manifest.json",
                                                 "shard-00000-of-00002.h5",
                                                 "shard-00001-of-00002.h5",
                                                 "x.weight",
                                                 "y.weight",
                                                 "x",
                                                 "weight",
                                                 "exp_avg",
                                                 "exp_avg_sq",
                                                 "f32",
                                                 "f64",
                                                 "i64",
                                                 "u8",
                                                 "emox checkpoint",
                                                 std::string("x\0weight", 8),
                                                 std::string("/x/weight\0", 10),
                                                 std::string(kDigits, '0'),
                                                 std::string(kDigits, 'F'),
                                                 std::string(70000, 'a'),
                                                 "\u00e9\u2028\U0001F600",
                                                 "\x7f\x01\"\\"};
  if (steer.below(8) != 0) return texts[steer.below(texts.size())];
  std::string text;
  for (std::size_t n = steer.below(12); n > 0; --n) text += static_cast<char>(steer.below(128));
  return text;
}

json odd_shape(Steer& steer) {
  json shape = json::array();
  for (std::size_t n = steer.below(6); n > 0; --n) shape.push_back(extreme_number(steer));
  return shape;
}

json other_value(Steer& steer) {
  switch (steer.below(9)) {
    case 0:
      return nullptr;
    case 1:
      return steer.below(2) == 0;
    case 2:
      return json::array();
    case 3:
      return json::object();
    case 4:
      return other_text(steer);
    case 5:
      return odd_shape(steer);
    case 6:
      return std::string(steer.below(2) == 0 ? kDeepArrays : kDeepObjects);
    default:
      return extreme_number(steer);
  }
}

/// The member at this place of an object or array.
json& member(json& parent, std::size_t at) {
  return *std::next(parent.begin(), static_cast<json::difference_type>(at));
}

struct Place {
  json* parent;
  std::size_t at;
};

/// Some member somewhere below the content; the content must have members.
Place some_place(json& content, Steer& steer) {
  Place place{&content, steer.below(content.size())};
  for (;;) {
    json& here = member(*place.parent, place.at);
    if (!here.is_structured() || here.empty() || steer.below(4) == 0) return place;
    place = {&here, steer.below(here.size())};
  }
}

/// Cuts a piece of a tensor in two, which a good manifest survives until its dataset is looked for.
void cut_piece(json& content, Steer& steer) {
  json* const tensors = content.contains("tensors") ? &content["tensors"] : nullptr;
  if (tensors == nullptr || !tensors->is_array() || tensors->empty()) return;
  json& piece = member(*tensors, steer.below(tensors->size()));
  const auto is_number = [&](const char* key) { return piece.contains(key) && piece[key].is_number_integer(); };
  if (!piece.is_object() || !is_number("begin") || !is_number("end")) return;
  json second = piece;
  const json middle = steer.below(14);
  piece["end"] = middle;
  second["begin"] = middle;
  second["dataset"] = "/cut-" + std::to_string(tensors->size());
  tensors->push_back(std::move(second));
}

/// Another value of the same kind, where parsing alone cannot know better: only the files can.
void replace_plausibly(json& content, Steer& steer) {
  const bool file = steer.below(3) == 0;
  json* const list = content.contains(file ? "files" : "tensors") ? &content[file ? "files" : "tensors"] : nullptr;
  if (list == nullptr || !list->is_array() || list->empty()) return;
  json& entry = member(*list, steer.below(list->size()));
  if (!entry.is_object()) return;
  const std::string digits = "0123456789abcdef";
  const std::size_t what = steer.below(3);
  if (what == 0) entry["xxh3_128"] = std::string(kDigits, digits[steer.below(16)]);
  if (what == 1 && file) entry["bytes"] = steer.below(65536);
  if (what == 1 && !file) entry["dataset"] = "/" + std::string(1 + steer.below(3), digits[steer.below(16)]);
  if (what == 2 && !file && list->size() > 1) {
    json& other = member(*list, steer.below(list->size()));
    if (other.is_object()) std::swap(entry["dataset"], other["dataset"]);
  }
}

void erase_member(const Place& place) {
  place.parent->erase(std::next(place.parent->begin(), static_cast<json::difference_type>(place.at)));
}

void copy_member(const Place& place, json value, Steer& steer) {
  // Copies of copies must not become gigabytes; this is plenty for a manifest of a few tensors.
  constexpr std::size_t kLargest = 20000;
  if (value.dump(-1, ' ', false, json::error_handler_t::replace).size() > kLargest) return;
  if (place.parent->is_object()) {
    (*place.parent)["copy"] = std::move(value);
    return;
  }
  for (std::size_t n = 1 + steer.below(3) * steer.below(40); n > 0; --n) place.parent->push_back(value);
}

void edit_once(json& content, Steer& steer) {
  const Place place = some_place(content, steer);
  json& value = member(*place.parent, place.at);
  switch (steer.below(10)) {
    case 0:
      return erase_member(place);
    case 1:
      return copy_member(place, value, steer);
    case 2: {
      // Another member's value: checksums, names and numbers that are right elsewhere.
      const Place other = some_place(content, steer);
      json copy = member(*other.parent, other.at);
      value = std::move(copy);
      return;
    }
    case 3:
      return cut_piece(content, steer);
    case 4:
    case 5:
      return replace_plausibly(content, steer);
    case 6:
      value = value.is_string() ? other_text(steer) : extreme_number(steer);
      return;
    default:
      value = other_value(steer);
  }
}

std::string repeated(std::string_view text, std::size_t times) {
  std::string all;
  all.reserve(text.size() * times);
  while (times-- > 0) all += text;
  return all;
}

/// The mark's first place gets all the nesting, the others little: the text must not become gigabytes.
void put_nesting(std::string& text, std::string_view mark, std::size_t depth, std::string_view open,
                 std::string_view close) {
  const std::string quoted = '"' + std::string(mark) + '"';
  for (std::size_t at = text.find(quoted); at != std::string::npos; at = text.find(quoted, at)) {
    text.replace(at, quoted.size(), repeated(open, depth) + "0" + repeated(close, depth));
    depth = std::min<std::size_t>(depth, 2);
  }
}

/// Overwrites, inserts, removes or repeats a few bytes.
void edit_text(std::string& text, Steer& steer) {
  const std::size_t at = std::min(text.size(), steer.below(65536) % (text.size() + 1));
  const std::size_t length = std::min(text.size() - at, steer.below(3) * steer.below(64));
  static constexpr std::string_view kTokens = "{}[]\",:0123456789-.eE\\tfn \n\x01\x80\xff";
  switch (steer.below(4)) {
    case 0:
      if (at < text.size()) text[at] = static_cast<char>(steer.byte());
      return;
    case 1:
      text.insert(at, 1, kTokens[steer.below(kTokens.size())]);
      return;
    case 2:
      text.erase(at, length);
      return;
    default:
      text.insert(at, text.substr(at, length));
  }
}

}  // namespace

std::uint8_t Steer::byte() {
  if (bytes_.empty()) return 0;
  const std::uint8_t b = bytes_.front();
  bytes_ = bytes_.subspan(1);
  return b;
}

std::size_t Steer::below(std::size_t n) {
  if (n <= 1) return 0;
  return (n <= 256 ? byte() : std::size_t{byte()} * 256 + byte()) % n;
}

std::string Steer::rest() {
  const std::span<const std::uint8_t> all = std::exchange(bytes_, {});
  return {all.begin(), all.end()};
}

void edit_content(json& content, Steer& steer) {
  constexpr int kMost = 8;
  for (int i = 0; i < kMost && !steer.done(); ++i) {
    if (!content.is_structured() || content.empty()) return;
    edit_once(content, steer);
  }
}

std::string edited_text(const json& content, Steer& steer) {
  const std::array<std::size_t, 5> depths = {1, 60, 65, 1000, 100000};
  std::string text = content.is_object() ? signed_text(content) : content.dump(1);
  if (const std::size_t n = depths[steer.below(depths.size())]; text.find('@') != std::string::npos) {
    put_nesting(text, kDeepArrays, n, "[", "]");
    put_nesting(text, kDeepObjects, n, "{\"a\":", "}");
  }
  if (steer.below(4) == 0)
    for (int i = 0; i < 4 && !steer.done(); ++i) edit_text(text, steer);
  return signed_again(std::move(text));
}

std::string signed_again(std::string text) {
  if (text.size() > kRest && text.starts_with(kHead))
    text.replace(kHead.size(), kDigits, checksum_of(text.data() + kRest, text.size() - kRest));
  return text;
}

}  // namespace emox::test
