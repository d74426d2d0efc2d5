#include "launch/config/nearest.h"

#include <algorithm>

#include "launch/config/aliases.h"
#include "runtime/core/error.h"

namespace emox {

std::size_t edit_distance(std::string_view a, std::string_view b) {
  // Three rows of the usual table; the row before the previous one serves the swap.
  std::vector<std::size_t> before(b.size() + 1), previous(b.size() + 1), row(b.size() + 1);
  for (std::size_t j = 0; j <= b.size(); ++j) row[j] = j;
  for (std::size_t i = 1; i <= a.size(); ++i) {
    before.swap(previous);
    previous.swap(row);
    row[0] = i;
    for (std::size_t j = 1; j <= b.size(); ++j) {
      const std::size_t replace = previous[j - 1] + (a[i - 1] == b[j - 1] ? 0 : 1);
      row[j] = std::min({previous[j] + 1, row[j - 1] + 1, replace});
      if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1]) row[j] = std::min(row[j], before[j - 2] + 1);
    }
  }
  return row[b.size()];
}

std::string nearest(std::string_view word, const std::vector<std::string>& names) {
  require(!names.empty(), "no names to compare '{}' with", word);
  return *std::min_element(names.begin(), names.end(), [&](const std::string& a, const std::string& b) {
    return edit_distance(word, a) < edit_distance(word, b);
  });
}

std::string nearest_key(std::string_view word, const std::vector<std::string>& names) {
  const auto key_of = [](std::string_view name) { return name.substr(name.rfind('.') + 1); };
  std::vector<std::string> same_key;
  for (const std::string& name : names)
    if (key_of(name) == key_of(word)) same_key.push_back(name);
  if (!same_key.empty()) return nearest(word, same_key);
  // The name by which others know a key is a better guess than a key that looks like it: lr is not eps.
  const std::string_view meant = key_of_alias(key_of(word));
  if (std::find(names.begin(), names.end(), meant) != names.end()) return std::string(meant);
  return nearest(word, names);
}

}  // namespace emox
