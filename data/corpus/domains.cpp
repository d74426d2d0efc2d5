#include "data/corpus/domains.h"

#include <string_view>

namespace emox {
namespace {

/// Matches the whole of `path`. Recursion depth is bounded by the number of stars in the pattern.
bool glob(std::string_view pattern, std::string_view path) {
  while (!pattern.empty() && pattern.front() != '*') {
    if (path.empty() || path.front() != pattern.front()) return false;
    pattern.remove_prefix(1);
    path.remove_prefix(1);
  }
  if (pattern.empty()) return path.empty();
  const bool across = pattern.starts_with("**");
  pattern.remove_prefix(across ? 2 : 1);
  for (std::size_t i = 0; i <= path.size(); ++i) {
    if (glob(pattern, path.substr(i))) return true;
    if (i < path.size() && path[i] == '/' && !across) return false;
  }
  return false;
}

}  // namespace

const char* name_of(Rule rule) {
  switch (rule) {
    case Rule::Html:
      return "html";
    case Rule::Pod:
      return "pod";
    case Rule::Python:
      return "python";
    case Rule::Ml:
      return "ml";
    case Rule::Dictd:
      return "dictd";
    case Rule::Fortune:
      return "fortune";
    case Rule::Sword:
      return "sword";
  }
  return "?";
}

const std::vector<Domain>& standard_domains() {
  static const std::vector<Domain> domains = {
      {"computing-dictionary", {"dict-foldoc"}, {"usr/share/dictd/*.index"}, Rule::Dictd},
      {"dictionary", {"dict-gcide"}, {"usr/share/dictd/*.index"}, Rule::Dictd},
      {"german-help", {"libreoffice-help-de"}, {"usr/share/libreoffice/help/de/text/**.html"}, Rule::Html},
      {"russian-quotations", {"fortunes-ru"}, {"usr/share/games/fortunes/ru/*", "!**.dat"}, Rule::Fortune},
      {"politics",
       {"anarchism"},
       // The pages left out are lists of links and of books.
       {"usr/share/doc/anarchism/html/*.html", "!**links.html", "!**/index.html", "!**/biblio.html", "!**/book.html",
        "!**/pdf.html", "!**/translations.html"},
       Rule::Html},
      {"perl-docs",
       {"perl-doc"},
       // Left out: tables of names, a copy of every other page's headings, pages in Chinese, Japanese and Korean,
       // licences.
       {"usr/share/perl/**.pod", "!**/perltoc.pod", "!**/perluniprops.pod", "!**/perlcn.pod", "!**/perljp.pod",
        "!**/perlko.pod", "!**/perltw.pod", "!**/perlartistic.pod", "!**/perlgpl.pod"},
       Rule::Pod},
      {"python-code",
       {"libpython3.11-stdlib"},
       // Left out: code tables and generated text.
       {"usr/lib/python3*/**.py", "!**/encodings/**", "!**/pydoc_data/**", "!**/_sysconfigdata*"},
       Rule::Python},
      {"scripture", {"sword-text-kjv"}, {"usr/share/sword/modules/texts/**.bzs"}, Rule::Sword},
      {"databases",
       {"sqlite3-doc"},
       // Left out: cross-reference tables, diagrams, the list of requirements and other pages that repeat whole pages.
       {"usr/share/doc/sqlite3/**.html", "!**crossref.html", "!**/requirements.html", "!**/keyword_index.html",
        "!**/syntaxdiagrams.html", "!**/syntax/**", "!**/sitemap.html", "!**/mostdocs.html", "!**/capi3ref.html",
        "!**/changes.html", "!**/fileformat.html", "!**/session.html"},
       Rule::Html},
      {"formal-proofs",
       {"hol-light"},
       // Left out: lists of theorem names.
       {"usr/share/hol-light/**.ml", "!**database*.ml", "!**/Proofrecording/**"},
       Rule::Ml},
  };
  return domains;
}

bool matches(const std::vector<std::string>& patterns, const std::string& path) {
  bool included = false;
  for (const std::string& pattern : patterns) {
    if (pattern.starts_with('!')) {
      if (glob(std::string_view(pattern).substr(1), path)) return false;
    } else {
      included = included || glob(pattern, path);
    }
  }
  return included;
}

}  // namespace emox
