#include "launch/run/trace.h"

#include <fmt/format.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <exception>
#include <iterator>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "parallel/comm/together.h"
#include "runtime/core/error.h"
#include "runtime/core/idx.h"
#include "runtime/files/atomic_file.h"
#include "runtime/files/files.h"

namespace emox {
namespace {

namespace fs = std::filesystem;

constexpr std::size_t kMostEvents = std::size_t{1} << 20;  // of all ranks: 100 MB of JSON, what a browser still opens
constexpr std::size_t kLeastEvents = std::size_t{1} << 14;
constexpr std::int64_t kPieceEvents = std::int64_t{1} << 15;

enum EventColumn : std::int64_t { kName, kStart, kDuration, kEventColumns };

/// A rank's events as rows of integers, by their starts and outer ones first; names by number.
struct Rows {
  std::vector<std::string> names;
  std::vector<std::int64_t> values;
};

Rows rows_of(std::span<const TraceEvent> events) {
  // Recorded by their ends: of two that start and end alike, the later one is the outer one.
  std::vector<TraceEvent> sorted(events.rbegin(), events.rend());
  std::stable_sort(sorted.begin(), sorted.end(), [](const TraceEvent& a, const TraceEvent& b) {
    return a.start_ns != b.start_ns ? a.start_ns < b.start_ns : a.duration_ns > b.duration_ns;
  });
  Rows rows;
  std::map<std::string_view, std::int64_t> numbers;
  rows.values.reserve(sorted.size() * kEventColumns);
  for (const TraceEvent& e : sorted) {
    const auto [place, is_new] = numbers.try_emplace(e.name, static_cast<std::int64_t>(rows.names.size()));
    if (is_new) rows.names.emplace_back(e.name);
    rows.values.insert(rows.values.end(), {place->second, e.start_ns, e.duration_ns});
  }
  return rows;
}

fs::path beside(const fs::path& path) { return path.string() + ".tmp"; }

/// The file while it grows. Until finish() nothing throws: a write that failed is remembered.
class TraceFile {
 public:
  explicit TraceFile(const fs::path& path) : file_(path) {
    put("{\"displayTimeUnit\": \"ms\", \"traceEvents\": [\n");
    // Not process 0: Perfetto takes that for the idle process of a kernel, and hides parts of it.
    put(R"({"name": "process_name", "ph": "M", "pid": 1, "tid": 1, "args": {"name": "emox train"}})");
  }

  void add_lane(int rank) {
    put(fmt::format(
        ",\n"
        R"({{"name": "thread_name", "ph": "M", "pid": 1, "tid": {0}, "args": {{"name": "rank {1}"}}}})"
        ",\n"
        R"({{"name": "thread_sort_index", "ph": "M", "pid": 1, "tid": {0}, "args": {{"sort_index": {1}}}}})",
        lane(rank), rank));
  }
  /// `names`: JSON strings.
  void add(int rank, const std::vector<std::string>& names, std::span<const std::int64_t> rows) {
    std::string text;
    for (; !rows.empty(); rows = rows.subspan(kEventColumns)) {
      const std::int64_t start = rows[kStart], duration = rows[kDuration];
      fmt::format_to(std::back_inserter(text),
                     ",\n"
                     R"({{"name": {}, "ph": "X", "ts": {}.{:03}, "dur": {}.{:03}, "pid": 1, "tid": {}}})",
                     names[idx(rows[kName])], start / 1000, start % 1000, duration / 1000, duration % 1000, lane(rank));
    }
    put(text);
  }
  void finish() {
    put("\n]}\n");
    if (failure_) std::rethrow_exception(failure_);
    file_.commit();
  }

 private:
  static int lane(int rank) { return rank + 1; }  // some versions of Perfetto merge thread 0 with thread 1
  void put(std::string_view text) {
    if (failure_) return;
    try {
      file_.write(text);
    } catch (const IoError&) {
      failure_ = std::current_exception();
    }
  }

  AtomicFile file_;
  std::exception_ptr failure_;  // of the first write that failed
};

/// Rows of rank `from` arrive on rank 0; the other ranks exchange nothing.
void send_to_root(Communicator& comm, int from, std::int64_t rows, std::int64_t* own, std::int64_t* received) {
  std::vector<std::int64_t> send(idx(comm.size())), recv = send;
  if (comm.rank() == from) send[0] = rows;
  if (comm.rank() == 0) recv[idx(from)] = rows;
  comm.all_to_all_v(TensorView(received, DType::I64, {comm.rank() == 0 ? rows : 0, kEventColumns}), recv,
                    TensorView(own, DType::I64, {comm.rank() == from ? rows : 0, kEventColumns}), send);
}

}  // namespace

void check_trace_path(const fs::path& path) {
  std::error_code ignored;
  require<UsageError>(!fs::is_directory(path, ignored), "--trace={} is a directory: name a file in it", path.string());
  std::FILE* probe = std::fopen(beside(path).c_str(), "wx");
  if (probe == nullptr && errno == EEXIST) return;  // what a crash has left, or somebody's: not to be emptied now
  require<UsageError>(probe != nullptr,
                      "--trace={} cannot be written ({}): check that its directory exists and is writable",
                      path.string(), std::strerror(errno));
  std::fclose(probe);
  std::remove(beside(path).c_str());
}

void begin_trace(Session& session, std::size_t max_events) {
  const auto ranks = idx(session.comm().size());
  if (max_events == 0) max_events = std::max(kMostEvents / ranks, kLeastEvents);
  session.comm().barrier();
  session.telemetry().start_trace(Telemetry::Clock::now(), max_events, {"phase.", "layer.", "dispatch.", "comm."},
                                  session.ctx().queue);
}

TraceSummary write_trace(Communicator& comm, Telemetry& telemetry, const fs::path& path) {
  Rows own = rows_of(telemetry.events());
  const auto names = gather_texts(comm, nlohmann::json(own.names).dump());
  std::int64_t header[2] = {static_cast<std::int64_t>(telemetry.events().size()), telemetry.dropped_events()};
  std::vector<std::int64_t> headers(idx(comm.size()) * 2);
  comm.all_gather(TensorView(headers.data(), DType::I64, {comm.size(), 2}), TensorView(header, DType::I64, {1, 2}));

  const bool root = comm.rank() == 0;
  std::unique_ptr<TraceFile> file;
  run_together(comm, [&] {
    if (root) file = std::make_unique<TraceFile>(path);
  });
  std::vector<std::int64_t> piece(root ? kPieceEvents * kEventColumns : 0);
  TraceSummary summary;
  for (int r = 0; r < comm.size(); ++r) {
    const std::int64_t count = headers[idx(2 * r)];
    summary.events += count;
    summary.dropped += headers[idx(2 * r + 1)];
    std::vector<std::string> quoted;
    if (root) {
      file->add_lane(r);
      for (const auto& name : nlohmann::json::parse(names[idx(r)])) quoted.push_back(name.dump());
    }
    for (std::int64_t begin = 0; begin < count; begin += kPieceEvents) {
      const std::int64_t rows = std::min(kPieceEvents, count - begin);
      send_to_root(comm, r, rows, comm.rank() == r ? own.values.data() + begin * kEventColumns : nullptr, piece.data());
      if (root) file->add(r, quoted, std::span(piece).first(idx(rows * kEventColumns)));
    }
  }
  run_together(comm, [&] {
    if (root) file->finish();
  });
  return summary;
}

void finish_trace(Session& session, const fs::path& path, bool force) {
  run_together(session.comm(), [&] {
    if (!session.root() || force || !fs::exists(fs::symlink_status(path))) return;
    session.log().info("the timeline that was in {} is now in {}", path.string(), move_aside(path).string());
  });
  const TraceSummary t = write_trace(session.comm(), session.telemetry(), path);
  session.log().info("timeline of {} events in {}: open it in chrome://tracing or ui.perfetto.dev", t.events,
                     path.string());
  if (t.dropped > 0)
    session.log().warn(
        "the timeline's end is missing: {} events of {} found no room. Trace fewer steps (run.stop_after_step)",
        t.dropped, t.dropped + t.events);
}

}  // namespace emox
