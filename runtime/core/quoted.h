// Text of any bytes as one line of valid UTF-8, and back: for what a user can name (paths, labels) and a recipe, a
// manifest or a JSON file must hold.
#pragma once

#include <string>
#include <string_view>

namespace emox {

bool is_utf8(std::string_view text);

/// The text itself where it is valid UTF-8 on one line, without '#', a control character, a blank at an end or a quote
/// in front. Otherwise in double quotes, with \\ and \" for those two and \xNN for what may not stand there.
std::string quoted_text(std::string_view text);

/// What quoted_text() was given; other text is itself. UsageError when it begins with a double quote but was not
/// written so.
std::string unquoted_text(std::string_view text);

}  // namespace emox
