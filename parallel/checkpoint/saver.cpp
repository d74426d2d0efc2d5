#include "parallel/checkpoint/saver.h"

#include <algorithm>
#include <chrono>
#include <functional>
#include <map>
#include <nlohmann/json.hpp>
#include <system_error>
#include <tuple>
#include <utility>

#include "parallel/checkpoint/layout.h"
#include "parallel/checkpoint/manifest.h"
#include "parallel/comm/together.h"
#include "runtime/core/error.h"
#include "runtime/files/files.h"
#include "runtime/ops/basic.h"

namespace emox {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

constexpr std::int64_t kAlignment = 64;

std::string text_of(const std::vector<ShardDataset>& datasets) {
  json tensors = json::array();
  for (const ShardDataset& s : datasets) tensors.push_back(to_json(s.entry));
  return tensors.dump();
}

/// What all ranks are going to write, from one text a rank. Throws unless that makes a checkpoint: what nobody wrote
/// could not be loaded, and of what two wrote one would win.
std::vector<std::vector<ManifestTensor>> entries_of(const std::vector<std::string>& texts) {
  std::vector<std::vector<ManifestTensor>> entries(texts.size());
  std::vector<ManifestTensor> all;
  std::map<std::string, std::size_t> rank_of_file;
  for (std::size_t r = 0; r < texts.size(); ++r) {
    for (const json& t : json::parse(texts[r]))
      entries[r].push_back(tensor_from_json(t, fmt::format("a piece of rank {}", r)));
    all.insert(all.end(), entries[r].begin(), entries[r].end());
    rank_of_file[shard_file_name(static_cast<int>(r), static_cast<int>(texts.size()))] = r;
  }
  check_coverage(all, [&](const ManifestTensor& t) { return fmt::format("rank {}", rank_of_file.at(t.file)); });
  return entries;
}

/// A rank's shard as text: its step too, so that ranks which do not agree on it are noticed.
std::string text_of(std::int64_t step, const WrittenShard& shard) {
  return json{{"step", step},
              {"file", {{"name", shard.file.name}, {"bytes", shard.file.bytes}, {"xxh3_128", shard.file.checksum}}},
              {"checksums", shard.checksums},
              {"offsets", shard.offsets}}
      .dump();
}

/// Puts files and tensors into the manifest.
void add_shards(Manifest& manifest, const std::vector<std::vector<ManifestTensor>>& entries,
                const std::vector<std::string>& shards) {
  for (std::size_t r = 0; r < shards.size(); ++r) {
    const json shard = json::parse(shards[r]);
    require<IoError>(shard.at("step") == manifest.step, "rank {} saves step {}, rank 0 step {}", r,
                     shard.at("step").dump(), manifest.step);
    const json& file = shard.at("file");
    manifest.files.push_back({file.at("name"), file.at("bytes"), file.at("xxh3_128")});
    const json &checksums = shard.at("checksums"), &offsets = shard.at("offsets");
    for (std::size_t i = 0; i < entries[r].size(); ++i) {
      manifest.tensors.push_back(entries[r][i]);
      manifest.tensors.back().checksum = checksums.at(i).get<std::string>();
      manifest.tensors.back().offset = offsets.at(i).get<std::int64_t>();
    }
  }
  std::sort(manifest.tensors.begin(), manifest.tensors.end(), [](const auto& a, const auto& b) {
    return std::tie(a.name, a.role, a.begin) < std::tie(b.name, b.role, b.begin);
  });
}

/// The pieces, ordered as they lie in memory, without those that have none.
std::vector<CheckpointPiece*> by_address(std::vector<CheckpointPiece>& pieces) {
  std::vector<CheckpointPiece*> sorted;
  for (CheckpointPiece& p : pieces)
    if (p.view.bytes() > 0) sorted.push_back(&p);
  std::sort(sorted.begin(), sorted.end(), [](auto* a, auto* b) { return std::less<>()(a->view.raw(), b->view.raw()); });
  return sorted;
}

/// The pieces in memory of their own, which this makes; neighbours stay neighbours, and `runs` says what to copy.
std::vector<CheckpointPiece> lay_out(std::vector<CheckpointPiece> pieces, Tensor& memory, std::vector<CopyRun>& runs) {
  struct Run {
    std::uint8_t* from;
    std::int64_t offset, bytes;
    Device device;
  };
  std::vector<Run> found;
  std::vector<std::int64_t> offsets;
  std::int64_t end = 0;
  const std::vector<CheckpointPiece*> sorted = by_address(pieces);
  for (const CheckpointPiece* p : sorted) {
    auto* from = static_cast<std::uint8_t*>(p->view.raw());
    const bool adjoins = !found.empty() && found.back().from + found.back().bytes == from;
    if (!adjoins) found.push_back({from, end = (end + kAlignment - 1) / kAlignment * kAlignment, 0, p->view.device()});
    offsets.push_back(end);
    end += static_cast<std::int64_t>(p->view.bytes());
    found.back().bytes = end - found.back().offset;
  }
  memory = Tensor({}, DType::U8, {end});
  auto* base = static_cast<std::uint8_t*>(memory.view().raw());
  for (std::size_t i = 0; i < sorted.size(); ++i) {
    TensorView& view = sorted[i]->view;
    view = TensorView(base + offsets[i], view.dtype(), {view.numel()});
  }
  for (const Run& r : found)
    runs.push_back(
        {TensorView(r.from, DType::U8, {r.bytes}, r.device), memory.view().rows(r.offset, r.offset + r.bytes)});
  return pieces;
}

void remove_quietly(const fs::path& path) {
  std::error_code ignored;  // a leftover is removed by the next run
  fs::remove_all(path, ignored);
}

}  // namespace

CheckpointSaver::CheckpointSaver(Communicator& comm, fs::path directory, std::span<const CheckpointPiece> pieces,
                                 const SaverOptions& options)
    : comm_(comm),
      directory_(std::move(directory)),
      options_(options),
      file_name_(shard_file_name(comm.rank(), comm.size())),
      pieces_(pieces.begin(), pieces.end()) {
  std::string text;
  run_together(comm_, [&] {
    bool elsewhere = false;
    for (const CheckpointPiece& p : pieces_) {
      bytes_ += static_cast<std::int64_t>(p.view.bytes());
      elsewhere = elsewhere || p.view.device().type != DeviceType::Cpu;
    }
    require<ShapeError>(!elsewhere || options_.context != nullptr,
                        "pieces of a checkpoint lie on a device, and there is no context to copy them with");
    if (elsewhere || options_.background) copied_ = shard_datasets(lay_out(pieces_, memory_, runs_), file_name_);
    if (!elsewhere) live_ = shard_datasets(pieces_, file_name_);
    text = text_of(elsewhere ? copied_ : live_);
  });
  const std::vector<std::string> texts = gather_texts(comm_, text);
  run_together(comm_, [&] {
    if (!first()) return;
    entries_ = entries_of(texts);
    remove_unfinished_checkpoints(directory_);
  });
}

CheckpointSaver::~CheckpointSaver() = default;  // a future of std::async waits

void CheckpointSaver::begin(std::int64_t step, const CheckpointMeta& meta) {
  require(!running(), "step {} is to be saved while step {} is being saved", step, step_);
  require<ShapeError>(step >= 0, "step {} cannot be saved", step);
  if (first()) check_placement_and_mesh(meta.placement, meta.mesh);
  step_ = step;
  meta_ = meta;
}

void CheckpointSaver::copy_pieces(Context& ctx) const {
  for (const CopyRun& run : runs_)
    if (run.from.device().type == DeviceType::Cpu)
      ops::copy(ctx, run.to, run.from);
    else
      ops::copy_to_host(ctx, run.to.raw(), run.from);
}

SavedCheckpoint CheckpointSaver::save(std::int64_t step, const CheckpointMeta& meta) {
  const bool live = !live_.empty() || copied_.empty();
  run_together(comm_, [&] {
    begin(step, meta);
    if (!live) copy_pieces(*options_.context);
  });
  phase_ = Phase::Writing;
  // Not in another thread: this one has nothing else to do.
  writing_ = std::async(std::launch::deferred, [this, live] { return write(live ? live_ : copied_); });
  return wait();
}

void CheckpointSaver::start(Context& ctx, std::int64_t step, const CheckpointMeta& meta) {
  require(options_.background, "this saver was made for saves that are waited for");
  begin(step, meta);
  copy_pieces(ctx);
  phase_ = Phase::Writing;
  writing_ = std::async(std::launch::async, [this] { return write(copied_); });
}

WrittenShard CheckpointSaver::write(const std::vector<ShardDataset>& datasets) const {
  if (first()) make_directories(directory_);
  return write_shard(unfinished_path(directory_, step_), file_name_, datasets);
}

bool CheckpointSaver::finished() const {
  const auto ready = [](const auto& f) {
    return !f.valid() || f.wait_for(std::chrono::seconds(0)) == std::future_status::ready;
  };
  return ready(writing_) && ready(committing_);
}

std::optional<SavedCheckpoint> CheckpointSaver::advance() {
  require(running(), "no save is running");
  try {
    if (phase_ == Phase::Committing) return finish_commit();
    finish_writing();
  } catch (const IoError&) {
    give_up();
    throw;
  }
  return std::nullopt;
}

SavedCheckpoint CheckpointSaver::wait() {
  for (;;)
    if (auto saved = advance()) return *std::move(saved);
}

void CheckpointSaver::finish_writing() {
  WrittenShard shard;
  std::string text;
  run_together(comm_, [&] {
    shard = writing_.get();
    text = text_of(step_, shard);
  });
  write_seconds_ = shard.seconds;
  // The shards' names: by one rank of every node, as the rank that renames the directory may be on another host.
  run_together(comm_, [&] {
    if (comm_.node_rank() == 0) sync_to_disk(unfinished_path(directory_, step_));
  });
  std::vector<std::string> shards = gather_texts(comm_, text);
  phase_ = Phase::Committing;
  if (!first()) return;
  // What wait() waits for anyway need not be in another thread, but a commit in the background must be.
  const auto policy = options_.background ? std::launch::async : std::launch::deferred;
  const Existing existing = written_.contains(step_) ? Existing::Remove : Existing::MoveAside;
  committing_ = std::async(policy, [this, existing, shards = std::move(shards)] {
    Manifest manifest{.step = step_,
                      .tokens = meta_.tokens,
                      .seed = meta_.seed,
                      .world_size = comm_.size(),
                      .recipe = meta_.recipe,
                      .extra = meta_.extra,
                      .placement = meta_.placement,
                      .mesh = meta_.mesh,
                      .libraries = library_versions(),
                      .files = {},
                      .tensors = {}};
    const auto start = std::chrono::steady_clock::now();
    add_shards(manifest, entries_, shards);
    CommittedCheckpoint committed = commit_checkpoint(directory_, manifest, options_.retention, existing);
    commit_seconds_ = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    return committed;
  });
}

SavedCheckpoint CheckpointSaver::finish_commit() {
  SavedCheckpoint saved{directory_ / step_directory_name(step_), step_, write_seconds_, 0, "", ""};
  run_together(comm_, [&] {
    if (!first()) return;
    const CommittedCheckpoint committed = committing_.get();
    saved.aside = committed.aside;
    saved.not_removed = committed.not_removed;
  });
  written_.insert(step_);
  saved.commit_seconds = commit_seconds_;
  phase_ = Phase::Idle;
  return saved;
}

// After a failed stage: all ranks are here, so nobody writes any more. Nobody leaves before all is removed: another
// save may follow.
void CheckpointSaver::give_up() {
  phase_ = Phase::Idle;
  const fs::path temporary = unfinished_path(directory_, step_);
  run_together(comm_, [&] { remove_quietly(temporary / file_name_); });
  run_together(comm_, [&] {
    std::error_code not_empty;  // ranks that did not agree on the step have directories of their own
    first() ? remove_quietly(temporary) : static_cast<void>(fs::remove(temporary, not_empty));
  });
}

fs::path save_checkpoint(Communicator& comm, const fs::path& directory, std::int64_t step,
                         std::span<const CheckpointPiece> pieces, const CheckpointMeta& meta) {
  return CheckpointSaver(comm, directory, pieces, {}).save(step, meta).path;
}

}  // namespace emox
