// The nearest valid name of a misspelt one: keys, values, commands, options, files.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>
#include <vector>

namespace emox {

/// Insertions, deletions, replacements and swaps of neighbours that turn a into b.
std::size_t edit_distance(std::string_view a, std::string_view b);

/// The name with the smallest distance; the first of equals. `names` is not empty.
std::string nearest(std::string_view word, const std::vector<std::string>& names);

/// As nearest, for `section.key`: a key that exists in another section is a better guess than any spelling, and so is
/// the key that other programs call `key` (aliases.h).
std::string nearest_key(std::string_view word, const std::vector<std::string>& names);

}  // namespace emox
