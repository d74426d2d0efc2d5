#include "launch/bench/checkpoint_bench.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <map>
#include <nlohmann/json.hpp>
#include <vector>

#include "launch/bench/median.h"
#include "launch/bench/plain_file.h"
#include "launch/run/failure.h"
#include "launch/run/model_pieces.h"
#include "launch/run/saving.h"
#include "launch/run/sharding.h"
#include "model/optim/optimizer.h"
#include "parallel/checkpoint/layout.h"
#include "parallel/comm/together.h"
#include "runtime/core/error.h"
#include "runtime/ops/basic.h"

namespace emox {
namespace {

namespace fs = std::filesystem;
using Clock = std::chrono::steady_clock;

/// The longest of the ranks' times, in seconds.
double over_ranks(Communicator& comm, std::chrono::duration<double> time) {
  return 1e-9 * static_cast<double>(largest_of_ranks(comm, static_cast<std::int64_t>(time.count() * 1e9)));
}

/// Of the slowest rank, from a moment when all are here.
template <typename Work>
double seconds_of(Session& session, const Work& work) {
  session.comm().barrier();
  const auto start = Clock::now();
  work();
  return over_ranks(session.comm(), Clock::now() - start);
}

class CheckpointBench {
 public:
  CheckpointBench(Session& session, const Recipe& recipe, const CheckpointBenchOptions& options)
      : s_(session),
        options_(options),
        sharding_(session.comm(), recipe.model, recipe.parallel),
        model_(recipe.model, session.ctx(), true, sharding_.experts()),
        optimizer_(session.ctx(), model_.parameters(), sharding_.mesh()) {
    model_.initialize(session.ctx(), 0);
    meta_.mesh = to_json(sharding_.mesh().layout());
    if (sharding_.experts() != nullptr) meta_.placement = sharding_.experts()->placement().to_json();
    pieces_ = pieces_to_save(model_, optimizer_, session.root());
    for (const CheckpointPiece& p : pieces_) bytes_ += static_cast<std::int64_t>(p.view.bytes());
    datasets_ = shard_datasets(pieces_, shard_file_name(session.comm().rank(), session.comm().size()));
    wanted_ = owned_pieces(optimizer_);
    for (CheckpointPiece& p : bias_pieces(model_)) wanted_.push_back(std::move(p));
  }

  nlohmann::ordered_json run() {
    on_root(s_.comm(), [&] {
      require<UsageError>(!fs::exists(options_.directory), "emox bench checkpoint: {} exists: give --dir another one",
                          options_.directory.string());
      fs::create_directories(options_.directory);
    });
    CheckpointSaver at_once(s_.comm(), options_.directory / "at-once", pieces_, {});
    CheckpointSaver background(s_.comm(), options_.directory / "background", pieces_,
                               {.background = true, .retention = {}});
    const Tensor from(s_.ctx().device, DType::U8, {bytes_}), to(s_.ctx().device, DType::U8, {bytes_});
    fill_state(from);
    saying_why(s_.comm().rank(), [&] {  // before the savers' destructors may wait
      for (int i = 0; i < options_.repeats; ++i) once(at_once, background, from, to);
    });
    s_.comm().barrier();
    on_root(s_.comm(), [&] { fs::remove_all(options_.directory); });
    return result();
  }

 private:
  /// Some storage is faster, or much slower, with zeros, which new moments are; the plain file gets the same numbers.
  void fill_state(const TensorView& plain) {
    Context& ctx = s_.ctx();
    const Philox philox(0, RngPurpose::Test);
    std::uint32_t stream = 0;
    std::int64_t at = 0;
    for (const CheckpointPiece& p : pieces_) {
      if (p.role != "weight") ops::random_truncated_normal(ctx, p.view, philox, stream++, 0, 1e-3, 3e-3);
      const auto n = static_cast<std::int64_t>(p.view.bytes());
      ops::copy(ctx, plain.rows(at, at + n), TensorView(p.view.raw(), DType::U8, {n}, p.view.device()));
      at += n;
    }
  }

  /// Everything is written to a new place and removed outside of the measured times.
  void once(CheckpointSaver& at_once, CheckpointSaver& background, const TensorView& from, const TensorView& to) {
    Context& ctx = s_.ctx();
    const auto note = [&](const char* name, double seconds) { times_[name].push_back(seconds); };
    const auto clear = [&](const fs::path& path) {
      s_.comm().barrier();
      on_root(s_.comm(), [&] { remove_and_settle(path); });
    };
    const fs::path shards = options_.directory / "shards", plain = options_.directory / "plain";
    const std::string name = shard_file_name(s_.comm().rank(), s_.comm().size());
    // Before and after the others: some storage serves whoever comes first after a pause worse, or better.
    const auto plain_file = [&] {
      on_root(s_.comm(), [&] { fs::create_directory(plain); });
      note("raw", seconds_of(s_, [&] { write_plain_file(plain / name, from); }));
      drop_from_cache(plain / name);
      note("raw_read", seconds_of(s_, [&] { read_plain_file(plain / name, to); }));
      clear(plain);
    };
    plain_file();
    note("write", seconds_of(s_, [&] { write_shard_unchecked(shards, name, datasets_); }));
    clear(shards);
    SavedCheckpoint saved;
    note("save", seconds_of(s_, [&] { saved = at_once.save(1, meta_); }));
    note("commit", over_ranks(s_.comm(), std::chrono::duration<double>(saved.commit_seconds)));
    if (s_.root())
      for (const ManifestFile& f : read_manifest(saved.path).files) drop_from_cache(saved.path / f.name);
    const std::int64_t before = memory_stats().allocated;
    reset_memory_peak();
    note("load", seconds_of(s_, [&] {
           load_checkpoint(s_.comm(), saved.path, wanted_);
           optimizer_.gather_weights(ctx);
         }));
    load_extra_ = std::max(load_extra_, memory_stats().peak - before);
    clear(saved.path);
    note("copy", seconds_of(s_, [&] { ops::copy(ctx, to, from); }));
    note("stall", seconds_of(s_, [&] { background.start(ctx, 1, meta_); }));
    clear(background.wait().path);
    plain_file();
  }

  nlohmann::ordered_json result() {
    const auto seconds = [&](const char* name) { return median(times_.at(name)); };
    const double all = static_cast<double>(bytes_);
    const auto rate = [&](const char* name) { return all / seconds(name) / 1e9; };
    std::int64_t wanted = 0;
    for (const CheckpointPiece& p : wanted_) wanted += static_cast<std::int64_t>(p.view.bytes());
    return {{"save_gb_s", rate("save")},
            {"load_gb_s", static_cast<double>(wanted) / seconds("load") / 1e9},
            {"raw_gb_s", rate("raw")},
            {"stall_s", seconds("stall")},
            {"copy_floor_s", seconds("copy")},
            {"write_gb_s", rate("write")},
            {"raw_read_gb_s", rate("raw_read")},
            {"write_over_raw", seconds("raw") / seconds("write")},
            {"save_over_raw", seconds("raw") / seconds("save")},
            {"load_over_raw", seconds("raw_read") * static_cast<double>(wanted) / all / seconds("load")},
            {"stall_over_copy", seconds("stall") / seconds("copy")},
            {"commit_s", seconds("commit")},
            {"load_extra_bytes", load_extra_},
            {"bytes", bytes_},
            {"load_bytes", wanted},
            {"pieces", pieces_.size()},
            {"writers", s_.comm().size()},
            {"repeats", options_.repeats}};
  }

  Session& s_;
  const CheckpointBenchOptions options_;
  Sharding sharding_;
  LanguageModel model_;
  Optimizer optimizer_;
  CheckpointMeta meta_;
  std::vector<CheckpointPiece> pieces_, wanted_;
  std::vector<ShardDataset> datasets_;
  std::int64_t bytes_ = 0, load_extra_ = 0;
  std::map<std::string, std::vector<double>> times_;
};

}  // namespace

nlohmann::ordered_json bench_checkpoint(Session& session, const Recipe& recipe, const CheckpointBenchOptions& options) {
  CheckpointBench bench(session, recipe, options);
  return bench.run();
}

std::string checkpoint_table(const nlohmann::ordered_json& r) {
  const auto number = [&](const char* key) { return r.at(key).get<double>(); };
  std::string text =
      fmt::format("{} writer(s), {:.1f} MiB and {} pieces each; GB/s of a writer, median of {}\n",
                  r["writers"].get<int>(), number("bytes") / 1048576, r["pieces"].get<int>(), r["repeats"].get<int>());
  const auto line = [&](const char* what, const char* key, const char* over) {
    text += fmt::format("{:<44}{:>8.3f}", what, number(key));
    text += over == nullptr ? "\n" : fmt::format("{:>7.0f} % of a plain file\n", 100 * number(over));
  };
  line("plain file, written and synced", "raw_gb_s", nullptr);
  line("checkpoint, without reading back", "write_gb_s", "write_over_raw");
  line("checkpoint, all checksums, in place", "save_gb_s", "save_over_raw");
  line("plain file, read from the storage", "raw_read_gb_s", nullptr);
  line("checkpoint, verified and loaded", "load_gb_s", "load_over_raw");
  text += fmt::format("background save: training stops {:.4f} s, {:.2f} x one copy in memory\n", number("stall_s"),
                      number("stall_over_copy"));
  text += fmt::format("index, manifest and renaming {:.3f} s; loading allocated {:.1f} MiB beside the state\n",
                      number("commit_s"), number("load_extra_bytes") / 1048576);
  return text;
}

}  // namespace emox
