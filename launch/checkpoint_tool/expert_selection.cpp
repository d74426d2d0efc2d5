#include "launch/checkpoint_tool/expert_selection.h"

#include <fmt/format.h>

#include <charconv>
#include <map>
#include <string_view>

#include "runtime/core/error.h"

namespace emox {
namespace {

std::vector<std::string_view> split(std::string_view text, char at) {
  std::vector<std::string_view> parts;
  for (;;) {
    const std::size_t end = text.find(at);
    parts.push_back(text.substr(0, end));
    if (end == std::string_view::npos) return parts;
    text.remove_prefix(end + 1);
  }
}

/// Reads the text against what is there.
class Parser {
 public:
  Parser(std::string text, const ExpertSelection& available, const std::string& origin)
      : text_(std::move(text)), origin_(origin) {
    for (const auto& [layer, expert] : available) layers_[layer].insert(expert);
  }

  ExpertSelection parse() {
    require<UsageError>(!layers_.empty(), "{}={}: the checkpoint has no routed experts", origin_, text_);
    if (text_.find(':') == std::string::npos) {
      for (const auto& [layer, experts] : layers_) add(layer, text_);
      return std::move(chosen_);
    }
    std::set<std::int64_t> named;
    for (const std::string_view part : split(text_, ';')) {
      const std::size_t colon = part.find(':');
      if (colon == std::string_view::npos) reject(part);
      const std::int64_t layer = number(part.substr(0, colon));
      require<UsageError>(layers_.contains(layer), "{}={}: there is no layer {} with experts; use {} to {}", origin_,
                          text_, layer, layers_.begin()->first, layers_.rbegin()->first);
      require<UsageError>(named.insert(layer).second, "{}={}: layer {} stands there twice", origin_, text_, layer);
      add(layer, part.substr(colon + 1));
    }
    return std::move(chosen_);
  }

 private:
  [[noreturn]] void reject(std::string_view part) const {
    fail<UsageError>(
        "{}={}: cannot read '{}': write 0-3,7 for these experts of every layer, or 0:0-3;1:7,9 layer by "
        "layer",
        origin_, text_, part);
  }

  std::int64_t number(std::string_view text) const {
    std::int64_t n = 0;
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), n);
    if (error != std::errc{} || end != text.data() + text.size() || n < 0) reject(text);
    return n;
  }

  void add(std::int64_t layer, std::string_view ids) {
    for (const std::string_view part : split(ids, ',')) {
      const std::size_t dash = part.find('-');
      const std::int64_t first = number(part.substr(0, dash));
      const std::int64_t last = dash == std::string_view::npos ? first : number(part.substr(dash + 1));
      if (last < first) reject(part);
      const std::set<std::int64_t>& there = layers_.at(layer);
      for (std::int64_t expert = first; expert <= last; ++expert) {
        require<UsageError>(there.contains(expert), "{}={}: layer {} has no routed expert {}; use {} to {}", origin_,
                            text_, layer, expert, *there.begin(), *there.rbegin());
        chosen_.emplace(layer, expert);
      }
    }
  }

  std::string text_;
  const std::string& origin_;
  std::map<std::int64_t, std::set<std::int64_t>> layers_;
  ExpertSelection chosen_;
};

}  // namespace

ExpertSelection routed_experts_in(const std::vector<SavedArray>& arrays, std::int64_t routed) {
  ExpertSelection experts;
  for (const SavedArray& a : arrays)
    if (const auto place = expert_of(a.name); place && place->expert < routed)
      experts.emplace(place->layer, place->expert);
  return experts;
}

ExpertSelection parse_experts(const std::string& text, const ExpertSelection& available, const std::string& origin) {
  return Parser(text, available, origin).parse();
}

}  // namespace emox
