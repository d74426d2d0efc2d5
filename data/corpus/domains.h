// Which packages make up which domain, and how their files become documents.
#pragma once

#include <string>
#include <vector>

namespace emox {

/// How a file is read; one function each in extract.h.
enum class Rule { Html, Pod, Python, Ml, Dictd, Fortune, Sword };
const char* name_of(Rule rule);

struct Domain {
  std::string label;  ///< for evaluation and the mixture only, never a training input
  std::vector<std::string> packages;
  /// Files inside the packages: `*` matches within a name, `**` across directories; a pattern with a leading `!`
  /// excludes.
  std::vector<std::string> files;
  Rule rule = Rule::Html;
};

/// Ten domains, 54 MB to download on Debian 12: two dictionaries, German help pages, Russian quotations, a political
/// FAQ, Perl and SQLite manuals, Python, proofs in HOL Light, scripture. They differ in vocabulary, syntax, register
/// and language.
const std::vector<Domain>& standard_domains();

/// True if a path (relative, no leading slash) matches one of the patterns and none of the excluding ones.
bool matches(const std::vector<std::string>& patterns, const std::string& path);

}  // namespace emox
