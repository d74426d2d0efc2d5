// Parts of a report's page: text in, well-formed markup out.
#pragma once

#include <string>
#include <vector>

namespace emox {

/// The first cell heads the row; cells that say kMissing (figures.h) look so.
std::string table_row(const std::vector<std::string>& cells, const char* tag = "td");
/// `rows`: of table_row().
std::string table(const std::string& caption, const std::vector<std::string>& head, const std::string& rows);
std::string paragraph(const std::string& text);
std::string heading(const std::string& text);

/// A whole page that needs nothing else, for light and dark screens and for paper; `body` is markup.
std::string page_html(const std::string& title, const std::string& body);

}  // namespace emox
