// Messages for people. Rank 0 speaks on the console; every rank writes to its own file when there is one.
#pragma once

#include <fmt/format.h>

#include <cstdio>
#include <mutex>
#include <set>
#include <string>

namespace emox {

class Log {
 public:
  /// `file_path` empty: no file. The file is appended to, so a resumed run keeps its history.
  explicit Log(int rank = 0, const std::string& file_path = "");
  ~Log();
  Log(const Log&) = delete;
  Log& operator=(const Log&) = delete;

  /// Console on rank 0, and the rank's file.
  template <typename... A>
  void info(fmt::format_string<A...> f, A&&... a) {
    write("", fmt::format(f, std::forward<A>(a)...), rank_ == 0);
  }
  /// As info, marked; the same text is shown once.
  template <typename... A>
  void warn(fmt::format_string<A...> f, A&&... a) {
    write_once("warning: ", fmt::format(f, std::forward<A>(a)...));
  }
  /// The rank's file alone.
  template <typename... A>
  void detail(fmt::format_string<A...> f, A&&... a) {
    write("", fmt::format(f, std::forward<A>(a)...), false);
  }

  int rank() const { return rank_; }
  /// Starts writing to a file (the run directory is known only after the recipe has been read).
  void open_file(const std::string& path);
  /// Silences the console (JSON output owns it).
  void set_console(bool on) { console_ = on; }

 private:
  void write(const char* prefix, const std::string& text, bool console);
  void write_once(const char* prefix, const std::string& text);
  int rank_;
  bool console_ = true;
  std::FILE* file_ = nullptr;
  bool file_failed_ = false;  ///< said once
  std::mutex mutex_;
  std::set<std::string> seen_;
};

}  // namespace emox
