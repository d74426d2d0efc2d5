// The timeline of a run: what every rank did when, as one file that chrome://tracing and ui.perfetto.dev open.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>

#include "launch/run/session.h"
#include "parallel/comm/communicator.h"
#include "runtime/telemetry/spans.h"

namespace emox {

/// UsageError unless the trace can be written to this path: its directory takes files, and it is no directory itself.
void check_trace_path(const std::filesystem::path& path);

/// Collective. Keeps the session's phases, layers, dispatches and collectives as events from now on, at most
/// `max_events` of this rank (0: its share of 2^20, at least 2^14). Ends a barrier: there the clocks of all ranks are
/// zero.
void begin_trace(Session& session, std::size_t max_events = 0);

/// Of all ranks.
struct TraceSummary {
  std::int64_t events = 0;
  std::int64_t dropped = 0;  ///< for lack of room
};

/// Collective. Rank 0 writes the events of all ranks to `path`, beside it first and then renamed: the object form of
/// Chrome's trace format with complete events in microseconds, one lane a rank. Events reach rank 0 in pieces of less
/// than a MiB. IoError on every rank if the file cannot be written.
TraceSummary write_trace(Communicator& comm, Telemetry& telemetry, const std::filesystem::path& path);

/// Collective. write_trace, and a word in the log: where the file is, and how many events are missing. What is at
/// `path` is moved aside under a name that says when, or replaced where `force` says so.
void finish_trace(Session& session, const std::filesystem::path& path, bool force = false);

}  // namespace emox
