// Comma-separated values (RFC 4180): fields with commas, quotes or line ends are quoted, quotes inside doubled.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>
#include <vector>

namespace emox {

/// A line with its end.
std::string csv_line(const std::vector<std::string>& fields);

struct CsvLine {
  std::size_t number = 0;  ///< in the file, from 1: where the line begins; a quoted field may hold line ends
  std::vector<std::string> fields;
};
/// UsageError "NAME:LINE: what is wrong" for an empty file, a last line without an end, and quotes out of place.
std::vector<CsvLine> read_csv(std::string_view text, const std::string& name);

}  // namespace emox
