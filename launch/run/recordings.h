// Files that a training run writes besides its directory: --trace and --record-pools. What is at their place is never
// lost: a run goes on with its own recording, keeps its earlier timelines, and refuses everything else.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "data/loader/loader.h"
#include "launch/run/session.h"
#include "model/moe/pools.h"
#include "parallel/expert/pool_trace.h"

namespace emox {

/// One rank. UsageError unless the timeline can be written to `path`: nothing is there, or one that an earlier job of
/// this run wrote (`own`: by run.json), or `force`.
void check_trace(const std::string& path, const std::vector<std::string>& own, bool force);

/// One rank, before anything is written. What the ranks of this job do with the recording `name`. UsageError when
/// something is there that this run did not record, and `force` does not say to replace it; or when it recorded it on
/// another number of ranks.
PoolTraceFile check_recording(const std::string& name, int ranks, const std::vector<std::string>& own, bool force);

/// Of what a model's run records, its tokens among them.
PoolTraceHeader recording_header(const ModelConfig& model, const PoolSizes& pools);

/// A micro-batch is the next of a rank's sequences of a step, `tokens` together; `taken` counts the sequences.
RecordedWords next_words(const std::vector<Sequence>& step, std::size_t& taken, std::int64_t tokens);

/// Collective. This rank's part of the recording, gone on with after `last_step` where rank 0's `existing` says so.
/// `existing` counts on rank 0. UsageError on every rank.
std::unique_ptr<PoolTraceWriter> open_recording(Session& session, const std::string& name,
                                                const PoolTraceHeader& header, PoolTraceFile existing,
                                                std::int64_t last_step);

}  // namespace emox
