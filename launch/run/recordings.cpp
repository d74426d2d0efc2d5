#include "launch/run/recordings.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <system_error>

#include "launch/run/trace.h"
#include "parallel/comm/together.h"
#include "runtime/core/error.h"

namespace emox {
namespace {

namespace fs = std::filesystem;

bool is_own(const fs::path& path, const std::vector<std::string>& own) {
  return std::find(own.begin(), own.end(), fs::absolute(path).lexically_normal().string()) != own.end();
}

}  // namespace

void check_trace(const std::string& path, const std::vector<std::string>& own, bool force) {
  check_trace_path(path);
  std::error_code ignored;
  require<UsageError>(force || is_own(path, own) || !fs::exists(fs::symlink_status(path, ignored)),
                      "--trace={} exists: give --force to replace it, or another name", path);
}

PoolTraceFile check_recording(const std::string& name, int ranks, const std::vector<std::string>& own, bool force) {
  const fs::path path = name, folder = path.has_parent_path() ? path.parent_path() : fs::path(".");
  std::error_code ignored;
  require<UsageError>(fs::is_directory(folder, ignored) && access(folder.c_str(), W_OK) == 0,
                      "--record-pools {} cannot be written: check that its directory exists and is writable", name);
  const std::vector<fs::path> parts = existing_parts(path);
  if (parts.empty()) return PoolTraceFile::MustBeNew;
  const bool same_ranks = std::all_of(parts.begin(), parts.end(), [&](const fs::path& part) {
    for (int r = 0; r < ranks; ++r)
      if (part == pool_trace_path(path, r, ranks)) return true;
    return false;
  });
  if (force) {
    // Parts of another number of ranks would make one recording of two.
    for (const fs::path& part : parts) {
      const PoolTraceReader readable{part};  // nothing else is removed
      if (!same_ranks) fs::remove(part);
    }
    return PoolTraceFile::Replace;
  }
  require<UsageError>(is_own(path, own), "--record-pools {} exists ({}): give --force to replace it, or another name",
                      name, parts.front().string());
  require<UsageError>(same_ranks,
                      "--record-pools {}: this run recorded it on another number of ranks than {} ({}): go on with as "
                      "many, or give another name",
                      name, ranks, parts.front().string());
  return PoolTraceFile::Continue;
}

PoolTraceHeader recording_header(const ModelConfig& model, const PoolSizes& pools) {
  return {static_cast<std::uint32_t>(model.routed_experts()), static_cast<std::uint32_t>(model.routed_top_k()),
          static_cast<std::uint32_t>(model.layers), pools.frees_tokens() && model.pool != PoolMode::Off,
          static_cast<std::uint32_t>(model.vocab_size)};
}

RecordedWords next_words(const std::vector<Sequence>& step, std::size_t& taken, std::int64_t tokens) {
  RecordedWords words;
  while (static_cast<std::int64_t>(words.tokens.size()) < tokens) {
    const std::vector<std::int32_t>& next = step.at(taken++).tokens;
    words.sequence_length = static_cast<std::int64_t>(next.size());
    words.tokens.insert(words.tokens.end(), next.begin(), next.end());
  }
  return words;
}

std::unique_ptr<PoolTraceWriter> open_recording(Session& session, const std::string& name,
                                                const PoolTraceHeader& header, PoolTraceFile existing,
                                                std::int64_t last_step) {
  Communicator& comm = session.comm();
  const auto what = static_cast<PoolTraceFile>(value_of_root(comm, static_cast<std::int64_t>(existing)));
  std::unique_ptr<PoolTraceWriter> writer;
  std::string problem;
  try {
    writer =
        std::make_unique<PoolTraceWriter>(pool_trace_path(name, comm.rank(), comm.size()), header, what, last_step);
  } catch (const Error& e) {
    problem = e.message();
  }
  problem = first_text(comm, problem);
  require<UsageError>(problem.empty(), "{}", problem);
  const bool goes_on = what == PoolTraceFile::Continue;
  if (goes_on && writer->continued_after() < last_step)
    session.log().warn("--record-pools {}: it holds steps up to {}, and goes on with step {}", name,
                       writer->continued_after(), last_step + 1);
  if (!goes_on && last_step > 0)
    session.log().warn("--record-pools {}: it begins with step {}, where this job goes on", name, last_step + 1);
  return writer;
}

}  // namespace emox
