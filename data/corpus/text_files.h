// The user's own text: which files there are, and their documents one after another, in little memory.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "data/corpus/corpus.h"

namespace emox {

struct InputFile {
  std::filesystem::path path;
  std::string name;  ///< relative to the directory that was given
  std::int64_t bytes = 0;
  std::int64_t changed = 0;  ///< time of the last change, ns
};

/// The files at or below the paths, in the order of the paths and then of the names. Throws UsageError for a path that
/// is missing, for what may not be read, and if there is no file.
std::vector<InputFile> list_files(const std::vector<std::string>& paths, TextCounts& counts);

/// Text files longer than this are cut into documents at paragraphs, lines, sentences or words.
inline constexpr std::size_t kMaxTextBytes = 16384;

/// The documents of one file. A name that ends in .jsonl or .ndjson, or in .json if its first line is an object with a
/// string `text`, has one a line, of any length; other files are text. Each also with .gz.
class TextReader {
 public:
  /// Throws IoError if the file cannot be opened.
  TextReader(const InputFile& file, TextCounts& counts);
  ~TextReader();

  /// The next document, as it is in the file; false at the end. Throws IoError if reading fails.
  bool next(std::string& document);
  /// True: documents of one file are independent of each other.
  bool is_json_lines() const { return json_lines_; }
  /// Bytes of the stored file that are read so far.
  std::int64_t position() const;
  /// The rest is not read.
  void stop();

 private:
  struct Stream;
  bool fill();
  bool next_line(std::string& line);
  bool next_text(std::string& document);
  std::string_view rest() const { return std::string_view(buffer_).substr(begin_); }

  std::unique_ptr<Stream> stream_;
  TextCounts& counts_;
  std::string name_;
  std::string buffer_;
  std::size_t begin_ = 0;  ///< of what is not yet given out
  bool ended_ = false;
  bool json_lines_ = false;
};

}  // namespace emox
