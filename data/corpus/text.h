// What every domain's text goes through, whatever its markup was.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>
#include <vector>

namespace emox {

/// Extractors put this before a heading or a definition: a good place to begin a document.
inline constexpr char kBreak = '\f';

inline constexpr std::size_t kMinDocumentBytes = 64;     ///< shorter ones are dropped
inline constexpr std::size_t kShortDocumentBytes = 200;  ///< shorter ones are joined with their neighbours
inline constexpr std::size_t kSplitBytes = 1000;         ///< from here on a document ends at the next kBreak
inline constexpr std::size_t kMaxDocumentBytes =
    4000;  ///< longer ones are split at paragraphs, lines, sentences or words

/// Drops CR, other control characters, byte order marks and bytes that are not valid UTF-8; turns no-break spaces into
/// spaces; strips blanks at line ends; leaves at most one empty line in a row and none at the ends. Keeps kBreak, tabs
/// and indentation.
std::string clean_text(std::string_view raw);

/// Joins the lines of every paragraph and collapses blanks: for hard-wrapped prose.
std::string reflow(std::string_view text);

/// Cuts cleaned text into pieces of at most kMaxDocumentBytes, at the best places available, never inside a character.
/// A rest below kShortDocumentBytes goes to the piece before it where it fits. Pieces have no kBreak and no blank ends.
std::vector<std::string> split_text(std::string_view text);

/// The last place in (limit / 2, limit] where a piece of a longer text may end, best kind first: after a paragraph, a
/// line, a sentence, a word, a character.
std::size_t cut_before(std::string_view text, std::size_t limit);

/// For one line of a text file or a message, whatever the bytes: control characters, the backslash and bytes that are
/// not valid UTF-8 become \\xHH.
std::string printable(std::string_view text);

/// Appends a piece to the one before it, an empty line between, if that is shorter than kShortDocumentBytes and the
/// result stays within kMaxDocumentBytes. False if not.
bool join_short(std::string& before, std::string_view piece);

}  // namespace emox
