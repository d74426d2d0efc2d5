// Which experts documents use: what a placement by affinity is chosen from.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <vector>

#include "parallel/expert/pool_trace.h"
#include "runtime/core/idx.h"

namespace emox {

/// Picks of documents, by layer and routed expert.
struct DocumentProfiles {
  std::int64_t layers = 0, experts = 0;
  std::vector<std::int64_t> tokens;  ///< [documents]
  std::vector<std::int32_t> picks;   ///< [documents, layers, experts]

  std::int64_t documents() const { return static_cast<std::int64_t>(tokens.size()); }
  std::int64_t size() const { return layers * experts; }  ///< of one profile
  const std::int32_t* of(std::int64_t document) const { return picks.data() + document * size(); }
};

/// One micro-batch of a recording: a record a layer, of the same documents.
using RecordedMicroBatch = std::vector<PoolRecord>;

/// Reads a recording micro-batch by micro-batch; no more than one is in memory.
class RecordedRun {
 public:
  /// UsageError as pool_trace_files(), and where the parts are of different models.
  explicit RecordedRun(const std::filesystem::path& name);
  const PoolTraceHeader& header() const { return header_; }
  /// The parts one after another; false at the end. A micro-batch that is cut short by a crash ends its part.
  /// UsageError where the layers of a part do not follow each other.
  bool next(RecordedMicroBatch& micro_batch);

 private:
  std::vector<std::filesystem::path> files_;
  std::size_t file_ = 0;
  std::unique_ptr<PoolTraceReader> reader_;
  PoolTraceHeader header_;
};

/// Adds a document of a micro-batch, unless it has fewer than `least` tokens.
void add_document(DocumentProfiles& profiles, const RecordedMicroBatch& micro_batch, std::int64_t document,
                  std::int64_t least);

}  // namespace emox
