// From the files of a package to raw text, one function a rule. What comes back is not yet cleaned: clean_text and
// split_text do that for all rules alike. kBreak marks good places to begin a document.
#pragma once

#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

#include "data/corpus/domains.h"

namespace emox {

/// The texts of one file: one a file for Html, Pod, Python and Ml, one an entry for Dictd and Fortune, one a chapter
/// for Sword. Throws IoError if the file cannot be read or is damaged.
std::vector<std::string> extract_file(Rule rule, const std::filesystem::path& path);

/// Tags, entities and page furniture (navigation, scripts, tables of contents) removed; headings marked; <pre> kept as
/// it is.
std::string extract_html(std::string_view html);
/// The character of an entity's name without & and ; ("auml", "#228", "#xe4"), as UTF-8; empty if unknown.
std::string decode_entity(std::string_view name);

/// Perl's plain old documentation: commands and formatting codes removed, headings marked, verbatim blocks kept.
std::string extract_pod(std::string_view pod);

/// Source code with comment blocks about copyright and licences removed and top-level definitions marked.
std::string extract_python(std::string_view code);
std::string extract_ml(std::string_view code);

/// Entries between lines that hold a lone %.
std::vector<std::string> extract_fortunes(std::string_view text);

/// A dictd dictionary: `index` lists headword, offset and length (tab-separated, base 64), `text` is the unpacked
/// .dict.dz. Several headwords may share an entry; it comes once. Cross-reference braces and source marks are removed,
/// lines joined.
std::vector<std::string> extract_dictionary(std::string_view index, std::string_view text);

/// A SWORD zText module: `blocks` is the .bzs index (12 bytes a block: offset, packed size, size), `packed` the .bzz
/// file.
std::vector<std::string> extract_sword(std::string_view blocks, std::string_view packed);
/// Chapters of one unpacked OSIS block; notes removed.
std::vector<std::string> extract_osis(std::string_view osis);

/// Reads a whole file, unpacking gzip where it is compressed. Throws IoError.
std::string read_source_text(const std::filesystem::path& path);

}  // namespace emox
