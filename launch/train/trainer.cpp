#include "launch/train/trainer.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>

#include "data/loader/heldout.h"
#include "data/loader/loader.h"
#include "data/tokenize/tokenizer.h"
#include "launch/bench/gemm_rate.h"
#include "launch/config/recipe_file.h"
#include "launch/train/evaluator.h"
#include "launch/train/lease.h"
#include "launch/train/progress.h"
#include "launch/train/run_directory.h"
#include "launch/train/same_on_ranks.h"
#include "launch/train/saving.h"
#include "launch/train/sharding.h"
#include "launch/train/signals.h"
#include "launch/train/trace.h"
#include "launch/train/training_step.h"
#include "launch/train/warm_start.h"
#include "model/optim/schedule.h"
#include "model/transformer/flops.h"
#include "parallel/expert/pool_trace.h"
#include "runtime/core/error.h"
#include "runtime/telemetry/metrics.h"

namespace emox {
namespace {

using Clock = std::chrono::steady_clock;
double since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

LoaderConfig loader_config(const Recipe& r) {
  LoaderConfig c;
  for (const std::string& s : r.data.source) c.sources.push_back(SourceSpec::parse(s));
  c.sequence_length = r.model.sequence_length;
  c.sequences_per_step = r.train.batch_sequences;
  c.vocab_size = r.model.vocab_size;
  c.seed = static_cast<std::uint64_t>(r.run.seed);
  return c;
}

Schedule schedule_of(const Recipe& r) {
  Schedule s;
  s.kind = r.train.schedule;
  s.peak = r.train.learning_rate;
  s.warmup_steps = r.train.warmup_steps;
  s.last_step = r.total_steps();
  s.min_ratio = r.train.min_lr_ratio;
  s.decay_steps = r.train.decay_steps;
  s.anneal_from_step = r.train.anneal_from_step;
  return s;
}

class Trainer {
 public:
  Trainer(Session& session, const Recipe& recipe, const std::vector<std::string>& command, const TrainOptions& options)
      : s_(session),
        recipe_(recipe),
        trace_(options.trace),
        among_(options.among),
        directory_(recipe.run.dir),
        loader_(loader_config(recipe)),
        sharding_(session.comm(), recipe.model, recipe.parallel),
        model_(recipe.model, session.ctx(), true, sharding_.experts()),
        pools_(make_pool_sizes(recipe.model, static_cast<std::uint64_t>(recipe.run.seed))),
        step_(session.ctx(), recipe, model_, sharding_.mesh(), pools_.get(),
              static_cast<std::int64_t>(loader_.sources().size())),
        schedule_(schedule_of(recipe)) {
    if (!options.record_pools.empty()) record_pools(options.record_pools);  // refused before anything is made
    start(command, options.lease);
  }

  void run() {
    const StopSignals signals;
    const std::int64_t last = recipe_.total_steps();
    const std::int64_t stop_after =
        recipe_.run.stop_after_step > 0 ? std::min(recipe_.run.stop_after_step, last) : last;
    if (done_ >= stop_after) {
      s_.log().info("nothing to do: {} already holds step {} of {}", recipe_.run.dir, done_, last);
      if (done_ == last && recipe_.eval.final && lacks_evaluation()) evaluate_now(done_, true);
      return;
    }
    if (!trace_.empty()) begin_trace(s_);
    Progress progress(done_ + 1, last, s_.root(), among_);
    bool stop = false;
    while (done_ < stop_after && !stop) {
      if (lease_ != nullptr) lease_->check();
      const std::int64_t step = done_ + 1;
      stop = one_step(step, signals.received() != 0, progress) && step < stop_after;
      done_ = step;
      const bool due = recipe_.checkpoint.every_steps > 0 && step % recipe_.checkpoint.every_steps == 0;
      if (due || stop || step == stop_after) {
        if (s_.root()) progress.finish();
        confirm_lease();
        saver_->save(step, step_.optimizer().steps_before() + step, stop || step == stop_after);
      }
      if (recipe_.eval.every_steps > 0 && step % recipe_.eval.every_steps == 0 && step < last && !stop) {
        progress.finish();
        evaluate_now(step, false);
      }
    }
    progress.finish();
    confirm_lease();
    saver_->settle();
    if (stop) {
      s_.log().info("stopped by signal {} after step {}; the same command goes on from there", signals.received(),
                    done_);
    } else if (done_ < last) {
      s_.log().info("stopped after step {} (run.stop_after_step); {} steps are left", done_, last - done_);
    } else if (recipe_.eval.final) {
      evaluate_now(done_, true);
    }
    if (!trace_.empty()) finish_trace(s_, trace_);
    if (pool_trace_ != nullptr) pool_trace_->flush();
    saver_->throw_failures();
  }

 private:
  void start(const std::vector<std::string>& command, const LeaseTiming& timing) {
    on_root(s_, [&] { lease_ = std::make_unique<RunLease>(directory_.root(), LeaseHolder::self(command), timing); });
    const auto found = find_latest(s_.comm(), directory_.checkpoints(), &s_.log());
    on_root(s_, [&] {
      require<UsageError>(
          found || !directory_.has_checkpoints(),
          "{} holds checkpoints, but none of them is intact: repair or remove them, or start another run with "
          "--run.dir=DIR",
          directory_.checkpoints().string());
    });
    directory_.prepare(s_, recipe_, command, found.has_value());
    if (found) {
      std::vector<CheckpointPiece> wanted = step_.optimizer().wanted_pieces();
      for (CheckpointPiece& piece : bias_pieces(model_)) wanted.push_back(std::move(piece));
      const LoadReport read = read_checkpoint(s_.comm(), *found, wanted);
      done_ = found->manifest.step;
      step_.optimizer().set_steps_before(optimizer_steps(found->manifest) - done_);
      s_.log().info("resumed {} from step {}: {}", recipe_.run.dir, done_,
                    describe_load(found->manifest, sharding_, read));
    } else if (!recipe_.run.warm_start.empty()) {
      warm_start(s_, recipe_, model_, step_.optimizer());
    } else {
      model_.initialize(s_.ctx(), static_cast<std::uint64_t>(recipe_.run.seed));
    }
    on_root(s_, [&] {
      metrics_ = std::make_unique<MetricsSink>(directory_.metrics().string(), done_);
      evaluations_ = std::make_unique<MetricsSink>(directory_.evaluations().string(), done_);
    });
    saver_ = std::make_unique<RunSaver>(s_, recipe_, directory_.checkpoints(), model_, step_.optimizer(), sharding_);
    read_held_out_documents();
    s_.comm().barrier();  // every rank at the same time, as in a step: cores share power, caches and memory
    floor_.emplace([this] { return gemm_rate(s_.ctx(), 3, 1024); });
    announce();
  }

  void record_pools(const std::string& name) {
    require<UsageError>(model_.experts() != nullptr, "--record-pools: a dense model has no pools");
    const ModelConfig& m = recipe_.model;
    pool_trace_ = std::make_unique<PoolTraceWriter>(
        pool_trace_path(name, s_.comm().rank(), s_.comm().size()),
        PoolTraceHeader{static_cast<std::uint32_t>(m.routed_experts()), static_cast<std::uint32_t>(m.routed_top_k()),
                        static_cast<std::uint32_t>(m.layers), pools_->frees_tokens() && m.pool != PoolMode::Off});
    model_.experts()->observe([this](Context& ctx, std::int64_t layer, TensorView ids, const DocumentPools& pools) {
      // Neither evaluations nor a forward pass that is only repeated.
      if (step_.routing_is_new()) pool_trace_->write(ctx, done_ + 1, layer, ids, pools);
    });
  }

  // Before the first step, so that a damaged file is found now and not after hours.
  void read_held_out_documents() {
    if (!recipe_.eval.final && recipe_.eval.every_steps == 0) return;
    held_out_ =
        read_held_out(loader_.sources(), recipe_.data.eval_documents, *make_tokenizer(recipe_.data.tokenizer_name()),
                      kHeldOutParts[static_cast<std::size_t>(recipe_.data.eval_part)]);
    require_same_held_out(s_.comm(), held_out_);
    for (const std::string& skipped : held_out_.skipped) s_.log().warn("not evaluated: {}", skipped);
  }

  void announce() {
    const double millions = static_cast<double>(model_.parameters().element_count()) / 1e6;
    s_.log().info(
        "{}: {:.2f} M parameters, {} rank(s) ({}) x {} thread(s), {} steps of {} tokens, GEMM {:.0f} GFLOP/s a rank on "
        "{}",
        recipe_.run.name, millions, s_.comm().size(), s_.comm().transport(), s_.ctx().threads, recipe_.total_steps(),
        recipe_.tokens_per_step(), floor_->rate() / 1e9, processor_name());
    const ProcessMesh& mesh = sharding_.mesh();
    if (model_.experts() != nullptr && s_.comm().size() > 1)
      s_.log().info("mesh: experts over {} rank(s){}, {} replica(s); {} placement, {} dispatch", mesh.expert_parallel(),
                    recipe_.parallel.expert_parallel == 0 ? " (auto)" : "", mesh.data_parallel(),
                    kPlacementNames[static_cast<std::size_t>(recipe_.parallel.placement)],
                    kDispatchNames[static_cast<std::size_t>(recipe_.parallel.dispatch)]);
    const auto mib = [](std::size_t bytes) { return static_cast<double>(bytes) / 1048576; };
    const auto buffer = static_cast<std::size_t>(saver_->buffer_bytes());
    s_.log().info("memory of a rank: weights and gradients {:.0f} MiB, optimizer {:.0f} MiB, activations {:.0f} MiB{}",
                  mib(model_.parameters().bytes()), mib(step_.optimizer().state_bytes()), mib(step_.activation_bytes()),
                  buffer == 0 ? "" : fmt::format(", copy for saving {:.0f} MiB", mib(buffer)));
    const auto epochs = loader_.epochs(recipe_.total_steps());
    for (std::size_t i = 0; i < epochs.size(); ++i)
      if (epochs[i] > 1.0)
        s_.log().warn("source {} is read {:.2f} times in this run", loader_.sources()[i].label, epochs[i]);
  }

  /// True when some rank was asked to stop.
  bool one_step(std::int64_t step, bool stop_requested, Progress& progress) {
    const auto start = Clock::now();
    s_.telemetry().clear();
    std::vector<Sequence> sequences;
    {
      const Span span(s_.ctx(), "phase.data");
      sequences = loader_.read(step, step_.share_begin(), step_.share_end());
      if (s_.root())
        for (const std::string& notice : loader_.epoch_notices(step)) s_.log().info("{}", notice);
    }
    std::vector<SequenceInput> inputs;
    double flops = 0;
    for (std::size_t i = 0; i < sequences.size(); ++i)
      inputs.push_back(
          {sequences[i].tokens, {}, step_.share_begin() + static_cast<std::int64_t>(i), sequences[i].label});
    flops = step_flops(recipe_.model, static_cast<std::int64_t>(sequences.size()) * recipe_.model.sequence_length,
                       make_micro_batch(recipe_.model, recipe_.data.eos_id(), inputs).attention_segments);
    const double learning_rate = schedule_.learning_rate(step);
    const StepMetrics m = step_.compute_gradients(step, inputs, {stop_requested, saver_->finished()});
    step_.update(step, learning_rate, m);
    const double step_s = since(start);
    if (s_.root()) report(step, m, learning_rate, step_s, floor_->fraction(flops, step_s, &s_.log()), progress);
    if (saver_->running() && m.save_finished) {
      progress.finish();
      confirm_lease();
      saver_->advance();
    }
    return m.stop;
  }

  void report(std::int64_t step, const StepMetrics& m, double learning_rate, double step_s, double floor_fraction,
              Progress& progress) {
    const double tokens_per_s = static_cast<double>(recipe_.tokens_per_step()) / step_s;
    const auto phase = [&](const char* name) { return s_.telemetry().seconds(std::string("phase.") + name); };
    metrics_->write({{"step", step},
                     {"tokens", step * recipe_.tokens_per_step()},
                     {"loss", m.loss()},
                     {"ce", m.ce},
                     {"lm_z", m.lm_z},
                     {"lb", m.lb},
                     {"router_z", m.router_z},
                     {"grad_norm", m.grad_norm},
                     {"lr", learning_rate},
                     {"tokens_per_s", tokens_per_s},
                     {"step_s", step_s},
                     {"gemm_floor_fraction", floor_fraction},
                     {"load_max_over_mean", m.load_max_over_mean},
                     {"experts_per_document", m.experts_per_document},
                     {"pool_mean", m.pool_mean},
                     {"rows_sent_per_token", m.dispatch.rows_sent_per_token},
                     {"ranks_per_token", m.dispatch.ranks_per_token},
                     {"nodes_per_token", m.dispatch.nodes_per_token},
                     {"ranks_per_document", m.dispatch.ranks_per_document},
                     {"bytes_intra_node", m.dispatch.bytes_intra_node},
                     {"bytes_inter_node", m.dispatch.bytes_inter_node},
                     {"bytes_saved", m.dispatch.bytes_saved},
                     {"exposed_comm_s", m.dispatch.exposed_comm_s},
                     {"rows_max_over_mean", m.dispatch.rows_max_over_mean},
                     {"phase_s",
                      {{"forward", phase("forward")},
                       {"backward", phase("backward")},
                       {"dispatch", phase("dispatch")},
                       {"combine", phase("combine")},
                       {"optimizer", phase("optimizer")},
                       {"reduce", phase("reduce")},
                       {"data", phase("data")}}}});
    progress.show(step, m, learning_rate, tokens_per_s, step_s, floor_fraction);
  }

  /// Before a checkpoint is begun or put in its place: this job must still have the directory.
  void confirm_lease() {
    if (lease_ != nullptr) lease_->confirm();
  }

  /// True on all ranks when the run ended between its last checkpoint and the evaluation.
  bool lacks_evaluation() {
    std::int64_t lacks = s_.root() && !directory_.evaluation_after(done_) ? 1 : 0;
    s_.comm().broadcast(TensorView(&lacks, DType::I64, {1}), 0);
    return lacks != 0;
  }

  void evaluate_now(std::int64_t step, bool final) {
    if (held_out_.sources.empty()) return;
    const std::int64_t tokens = step_.max_tokens();
    const Evaluation e = evaluate(s_.ctx(), model_, s_.comm(), held_out_.sources, recipe_.data.eos_id(), step,
                                  step_.spare_activations(), step_.spare_batch(), tokens);
    on_root(s_, [&] { evaluations_->write(e.to_json()); });
    if (final)
      s_.log().info("{}", e.to_text());
    else
      s_.log().info(
          "held-out loss after step {}: {:.4f} nats/token{}", step, e.mean_loss(),
          std::isnan(e.mean_bits_per_byte()) ? "" : fmt::format(", {:.4f} bits/byte", e.mean_bits_per_byte()));
  }

  Session& s_;
  const Recipe recipe_;
  const std::string trace_;
  const RunOfMany among_;
  RunDirectory directory_;
  std::unique_ptr<RunLease> lease_;  ///< on rank 0; given back after everything below has ended
  Loader loader_;
  Sharding sharding_;
  LanguageModel model_;
  std::unique_ptr<PoolSizes> pools_;
  TrainingStep step_;
  Schedule schedule_;
  HeldOutSet held_out_;
  std::unique_ptr<MetricsSink> metrics_, evaluations_;
  std::unique_ptr<PoolTraceWriter> pool_trace_;
  std::unique_ptr<RunSaver> saver_;
  std::int64_t done_ = 0;
  std::optional<GemmFloor> floor_;
};

}  // namespace

void train(Session& session, const Recipe& recipe, const std::vector<std::string>& command,
           const TrainOptions& options) {
  require_same(session.comm(), "the recipe", to_ini(recipe));
  if (!options.trace.empty()) on_root(session, [&] { check_trace_path(options.trace); });
  Trainer trainer(session, recipe, command, options);
  trainer.run();
}

}  // namespace emox
