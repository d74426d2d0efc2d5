#include "launch/run/trainer.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>

#include "data/loader/loader.h"
#include "launch/config/recipe_file.h"
#include "launch/run/announce.h"
#include "launch/run/divergence.h"
#include "launch/run/ending.h"
#include "launch/run/failure.h"
#include "launch/run/find_checkpoint.h"
#include "launch/run/gemm_rate.h"
#include "launch/run/lease.h"
#include "launch/run/lease_wait.h"
#include "launch/run/model_pieces.h"
#include "launch/run/profile_steps.h"
#include "launch/run/progress.h"
#include "launch/run/recordings.h"
#include "launch/run/run_data.h"
#include "launch/run/run_directory.h"
#include "launch/run/run_evaluations.h"
#include "launch/run/run_start.h"
#include "launch/run/run_status.h"
#include "launch/run/same_on_ranks.h"
#include "launch/run/saving.h"
#include "launch/run/sharding.h"
#include "launch/run/signals.h"
#include "launch/run/spikes.h"
#include "launch/run/step_line.h"
#include "launch/run/stop_request.h"
#include "launch/run/trace.h"
#include "launch/run/warm_start.h"
#include "launch/run/watchdog_limit.h"
#include "model/optim/schedule.h"
#include "model/training/training_step.h"
#include "model/transformer/flops.h"
#include "parallel/checkpoint/layout.h"
#include "parallel/comm/progress.h"
#include "parallel/comm/together.h"
#include "parallel/expert/pool_trace.h"
#include "runtime/core/error.h"
#include "runtime/core/idx.h"
#include "runtime/core/out_of_memory.h"
#include "runtime/telemetry/metrics.h"

namespace emox {
namespace {

using Clock = std::chrono::steady_clock;
double since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

class Trainer {
 public:
  Trainer(Session& session, const Recipe& recipe, const TrainOptions& options)
      : s_(session),
        given_(recipe),
        start_({.recipe = recipe}),
        recipe_(start_.recipe),
        trace_(options.trace),
        force_(options.force),
        among_(options.among),
        profile_(session, options.profile),
        directory_(recipe.run.dir),
        data_(find_training_data(session, recipe, options.look_in)),
        loader_(loader_config(recipe), data_.identity),
        sharding_(session.comm(), recipe.model, recipe.parallel),
        model_(recipe.model, session.ctx(), true, sharding_.experts()),
        pools_(make_pool_sizes(recipe.model, static_cast<std::uint64_t>(recipe.run.seed))),
        step_(session.ctx(), step_config(recipe), model_, sharding_.mesh(),
              {.pools = pools_.get(), .label_count = static_cast<std::int64_t>(loader_.sources().size())}),
        stop_(session, recipe.run.stop_after_minutes, {directory_.root() / "STOP", options.stop_file}),
        limit_(session.comm(), recipe.parallel.watchdog_s) {
    if (recipe.train.skip_spikes > 0) spikes_.emplace(recipe.train.skip_spikes, recipe.train.skip_window);
    require<UsageError>(options.record_pools.empty() || model_.experts() != nullptr,
                        "--record-pools: a dense model has no pools");
  }

  void run(const std::vector<std::string>& command, const TrainOptions& options) {
    start(command, options);
    const StopSignals signals;
    const std::int64_t last = recipe_.total_steps(), begin = done_, asked = recipe_.run.stop_after_step;
    const std::int64_t stop_after = asked > 0 ? std::min(asked, last) : last;
    const bool nothing_to_do = done_ >= stop_after;
    if (nothing_to_do)
      s_.log().info("nothing to do: {} already holds step {} of {}{}", recipe_.run.dir, done_, last,
                    done_ < last ? " and run.stop_after_step is not beyond it" : "");
    else
      profile_.check(done_ + 1, stop_after);
    if (!nothing_to_do && !trace_.empty()) begin_trace(s_);
    Progress progress(last, s_.root(), among_);
    // Signals during the start, and what an earlier job left out when it ended.
    bool stopped = stop_.agreed();
    if (!stopped && evaluations_->missing(done_)) stopped = !evaluate(progress);
    while (done_ < stop_after && !stopped) {
      if (lease_ != nullptr) lease_->check();
      profile_.before(done_ + 1);
      const StepMetrics m = one_step(done_ + 1, progress);
      profile_.after(++done_);
      stopped = m.stop;
      const bool due = recipe_.checkpoint.every_steps > 0 && done_ % recipe_.checkpoint.every_steps == 0;
      const bool evaluation_due = evaluations_->due(done_) && done_ < last;
      if (due || m.save || stopped || done_ == stop_after) save(stopped || done_ == stop_after, progress);
      if (evaluation_due && !stopped) stopped = !evaluate(progress);
      // Both may have taken longer than a step.
      if (saved_ == done_ || evaluation_due) stopped = stop_.agreed() || stopped;
    }
    if (saved_ != done_) save(true, progress);  // stopped in an evaluation
    progress.finish();
    confirm_lease();
    saver_->settle();
    if (!stopped && done_ == last && evaluations_->missing(last)) stopped = !evaluate(progress);
    const Ending ending{begin, done_, last, stopped, evaluations_->missing(done_), asked};
    if (const std::string line = ending_line(ending, stop_); !line.empty() && (!nothing_to_do || stopped))
      s_.log().info("{}", line);
    if (!trace_.empty()) {
      if (nothing_to_do)
        s_.log().warn("--trace={} is not written: there was no step to look at", trace_);
      else
        finish_trace(s_, trace_, force_);
    }
    if (pool_trace_ != nullptr) pool_trace_->flush();
    saver_->throw_failures();
    note_ending(status_->status, ending, stop_);
    note_saves();
    if (s_.root()) status_->write();
  }

  /// After it was said.
  void failed(const std::exception& error) {
    // A command that was refused is not how the run ended.
    if (!status_ || (!begun_ && dynamic_cast<const UsageError*>(&error) != nullptr)) return;
    try {
      confirm_lease();  // what another job has by now is not written to
      const auto* own = dynamic_cast<const Error*>(&error);
      status_->failed(own != nullptr ? own->message() : error.what());
    } catch (const std::exception&) {
    }
  }

 private:
  void start(const std::vector<std::string>& command, const TrainOptions& options) {
    auto recording = PoolTraceFile::MustBeNew;  // on rank 0
    on_root(s_.comm(), [&] {
      directory_.check_is_run();
      if (!trace_.empty()) check_trace(trace_, directory_.outputs_of("--trace"), force_);
      if (!options.record_pools.empty())
        recording =
            check_recording(options.record_pools, s_.comm().size(), directory_.outputs_of("--record-pools"), force_);
      const auto go_on = [&] {
        report_progress(s_.comm());
        return StopSignals::received() == 0;
      };
      lease_ = take_lease_within({given_.run.wait_s, [&](const std::string& who) { s_.log().info("{}", who); }, go_on},
                                 directory_.root(), command, options.lease);
    });
    status_.emplace(directory_.root(), s_.comm().rank(), s_.log());  // from here on the directory is this job's
    LoadReport read;
    const auto found = load_newest(
        s_, directory_.checkpoints(),
        [&](const FoundCheckpoint& c) {
          const OtherText other = check_same_data(c.manifest, data_.identity, recipe_.run, s_.log());
          start_ = plan_resume(given_, c.manifest, c.path.string(),
                               {options.rate, s_.comm().size(), other.train, other.held_out});
          start_.identity = to_json(identity_to_keep(c.manifest, data_.identity));
          return pieces_to_load(s_.ctx(), s_.comm(), model_, step_.optimizer(), c.manifest, start_.changes);
        },
        &read);
    if (!found) {
      on_root(s_.comm(), [&] {
        require<UsageError>(
            !directory_.has_checkpoints(),
            "{} holds checkpoints, but none of them is intact: repair or remove them, or start another run with "
            "--run.dir=DIR",
            directory_.checkpoints().string());
      });
      start_ = plan_start(given_);
      start_.identity = to_json(data_.identity);
    }
    schedule_ = schedule_of(recipe_);
    loader_.begin_at(start_.data);
    directory_.prepare(s_, start_, command, {{"--trace", trace_}, {"--record-pools", options.record_pools}});
    begun_ = true;
    status_->status.step = start_.step, status_->status.steps = recipe_.total_steps();
    note_saves();
    if (s_.root()) status_->write();
    if (!options.record_pools.empty()) record_pools(options.record_pools, recording);
    if (found) {
      step_.optimizer().gather_weights(s_.ctx());
      done_ = start_.step;
      step_.optimizer().set_steps_before(optimizer_steps(found->manifest) - done_);
      if (spikes_ && found->manifest.extra.contains("spikes"))
        spikes_->restore(found->manifest.extra["spikes"], (found->path / "manifest.json").string());
      s_.log().info("resumed {} from step {}: {}", recipe_.run.dir, done_,
                    describe_load(found->manifest, sharding_, read));
    } else if (!recipe_.run.warm_start.empty()) {
      warm_start(s_, recipe_, model_, step_.optimizer());
    } else {
      step_.initialize_weights(static_cast<std::uint64_t>(recipe_.run.seed));
    }
    on_root(s_.comm(), [&] {
      metrics_ = std::make_unique<MetricsSink>(directory_.metrics().string());
      evaluation_lines_ = std::make_unique<MetricsSink>(directory_.evaluations().string());
    });
    saver_ = std::make_unique<RunSaver>(s_, start_, directory_.checkpoints(), model_, step_.optimizer(), sharding_);
    evaluations_ = std::make_unique<RunEvaluations>(s_, recipe_, directory_, data_.sources, evaluation_lines_.get());
    saved_ = updated_ = done_;
    last_save_ = Clock::now();
    s_.comm().barrier();  // every rank at the same time, as in a step: cores share power, caches and memory
    floor_.emplace([this] { return gemm_rate(s_.ctx(), 3, 1024); });
    for (const std::string& note : start_.notes) s_.log().info("{}", note);
    announce(s_, {recipe_, model_, step_, sharding_, loader_, *floor_, idx(saver_->buffer_bytes())});
  }

  void record_pools(const std::string& name, PoolTraceFile existing) {
    const PoolTraceHeader header = recording_header(recipe_.model, *pools_);
    pool_trace_ = open_recording(s_, name, header, existing, start_.step);
    model_.observe_routing([this](Context& ctx, std::int64_t layer, TensorView ids, const DocumentPools& pools) {
      // Neither evaluations nor a forward pass that is only repeated.
      if (!step_.routing_is_new()) return;
      const auto words = layer == 0 ? next_words(sequences_, recorded_, ids.dim(0)) : RecordedWords{};
      pool_trace_->write(ctx, done_ + 1, layer, ids, pools, words);
    });
  }

  StepMetrics one_step(std::int64_t step, Progress& progress) {
    const auto start = Clock::now();
    s_.telemetry().clear();
    recorded_ = 0;
    {
      const Span span(s_.ctx(), "phase.data");
      const IoPhase io(s_.comm());
      sequences_ = loader_.read(step, step_.share_begin(), step_.share_end());
      if (s_.root())
        for (const std::string& notice : loader_.epoch_notices(step)) s_.log().info("{}", notice);
    }
    const std::vector<SequenceInput> inputs = step_inputs(sequences_, step_.share_begin());
    const double flops =
        step_flops(recipe_.model, static_cast<std::int64_t>(sequences_.size()) * recipe_.model.sequence_length,
                   make_micro_batch(recipe_.model, recipe_.data.eos_id(), inputs).attention_segments);
    const double learning_rate = schedule_.learning_rate(step);
    const StepMetrics m = step_.compute_gradients(step, inputs, {saver_->finished(), [this] { return late_votes(); }});
    const bool skipped = skips(step, m, progress);
    try {
      if (!skipped) step_.update(step, learning_rate, m), updated_ = step;
    } catch (const DivergedError& e) {
      fail<DivergedError>("{}. {}", e.message(), advice_after_divergence(recipe_, directory_.checkpoints(), updated_));
    }
    const double step_s = since(start);
    if (s_.root())
      report(step, m, learning_rate, step_s, floor_->fraction(flops, step_s, &s_.log()), skipped, progress);
    if (saver_->running() && m.save_finished) {
      progress.finish();
      confirm_lease();
      saver_->advance();
      if (!saver_->running()) note_saves();
    }
    limit_.measured(step_s);
    if (s_.root()) {
      status_->status.step = step;
      status_->status.step_s = std::max(status_->status.step_s, step_s);
      status_->refresh();
    }
    return m;
  }

  /// What this rank has to say at the end of a step; rank 0's clock decides for all.
  LateVotes late_votes() const {
    const double minutes = recipe_.checkpoint.every_minutes;
    return {stop_.here(), s_.root() && minutes > 0 && since(last_save_) >= 60 * minutes};
  }

  /// A spike updates nothing. The optimizer has not seen the step, so its bias correction does not count it.
  bool skips(std::int64_t step, const StepMetrics& m, Progress& progress) {
    if (!spikes_) return false;
    const std::string why = spikes_->judge(m.loss(), m.grad_norm);
    if (why.empty()) return false;
    step_.optimizer().set_steps_before(step_.optimizer().steps_before() - 1);
    progress.finish();
    s_.log().info("step {} is skipped, nothing is updated (train.skip_spikes = {:g}): {}; {} skipped so far", step,
                  recipe_.train.skip_spikes, why, spikes_->skipped());
    return true;
  }

  void save(bool last, Progress& progress) {
    progress.finish();
    confirm_lease();
    if (spikes_ && spikes_->in_doubt()) {  // and retention would remove the last good ones
      s_.log().warn("step {} is not saved: its loss or norm is not finite; the checkpoints before it stay", done_);
      return;
    }
    if (pool_trace_ != nullptr) pool_trace_->flush();  // a resume goes on with the recording at this step
    const nlohmann::json spikes = spikes_ ? spikes_->state() : nlohmann::json();
    if (saver_->save(done_, step_.optimizer().steps_before() + done_, last, spikes)) saved_ = done_;
    last_save_ = Clock::now();
    if (!saver_->running()) note_saves();
  }

  /// What is on the disk, not what was begun.
  void note_saves() {
    if (!s_.root()) return;
    const auto saved = list_checkpoints(directory_.checkpoints());
    status_->status.saved_step = saved.empty() ? 0 : step_of_directory(saved.front().filename().string()).value_or(0);
    if (saver_ != nullptr && saver_->seconds() > 0) status_->status.save_s = saver_->seconds();
    status_->refresh();
  }

  /// False: stopped meanwhile.
  bool evaluate(Progress& progress) {
    progress.finish();
    return evaluations_->evaluate_after(done_, model_, step_, stop_) || !stop_.agreed();
  }

  void report(std::int64_t step, const StepMetrics& m, double learning_rate, double step_s, double floor_fraction,
              bool skipped, Progress& progress) {
    const double tokens_per_s = static_cast<double>(recipe_.tokens_per_step()) / step_s;
    metrics_->write(step_line({.step = step,
                               .tokens = start_.tokens_after(step),
                               .learning_rate = learning_rate,
                               .tokens_per_s = tokens_per_s,
                               .step_s = step_s,
                               .gemm_floor_fraction = floor_fraction,
                               .skipped = skipped,
                               .skipped_steps = spikes_ ? spikes_->skipped() : 0,
                               .has_experts = model_.experts() != nullptr},
                              m, s_.telemetry()));
    progress.show(step, m, learning_rate, tokens_per_s, step_s, floor_fraction);
  }

  /// Before a checkpoint is begun or put in its place: this job must still have the directory.
  void confirm_lease() {
    if (lease_ != nullptr) lease_->confirm();
  }

  Session& s_;
  const Recipe given_;  ///< as the command has it
  RunStart start_;
  const Recipe& recipe_;  ///< of start_
  const std::string trace_;
  const bool force_;
  const RunOfMany among_;
  StepProfile profile_;
  RunDirectory directory_;
  std::unique_ptr<RunLease> lease_;  ///< on rank 0; given back after everything below has ended
  const RunData data_;
  Loader loader_;
  Sharding sharding_;
  LanguageModel model_;
  std::unique_ptr<PoolSizes> pools_;
  TrainingStep step_;
  Schedule schedule_;
  StopRequest stop_;
  WatchdogLimit limit_;
  std::optional<StatusFile> status_;  ///< once the lease is there
  bool begun_ = false;                ///< in run.json
  std::optional<SpikeGuard> spikes_;
  std::unique_ptr<MetricsSink> metrics_, evaluation_lines_;
  std::unique_ptr<RunEvaluations> evaluations_;
  std::unique_ptr<PoolTraceWriter> pool_trace_;
  std::vector<Sequence> sequences_;  ///< this rank's of the step
  std::size_t recorded_ = 0;         ///< of them, those that the recording has
  std::unique_ptr<RunSaver> saver_;
  std::int64_t done_ = 0, saved_ = 0;  ///< the last step, and the last one whose save was begun
  std::int64_t updated_ = 0;           ///< the last step that changed the weights, or whose weights were loaded
  Clock::time_point last_save_;        ///< or the start
  std::optional<GemmFloor> floor_;
};

}  // namespace

void train(Session& session, const Recipe& recipe, const std::vector<std::string>& command,
           const TrainOptions& options) {
  require_same(session.comm(), "the recipe", to_ini(recipe));
  const auto result = [&](const auto& e) { return options.may_diverge && dynamic_cast<const DivergedError*>(&e); };
  // Which part is too large can be said where it is known what all of them take.
  const auto explained = [&](const auto& work) {
    try {
      return work();
    } catch (const OutOfMemoryError& e) {
      if (!options.memory_plan) throw;
      fail<OutOfMemoryError>("{}\n{}", e.message(), options.memory_plan());
    }
  };
  std::unique_ptr<Trainer> trainer;
  explained([&] { trainer = std::make_unique<Trainer>(session, recipe, options); });
  try {
    saying_why(
        session.comm().rank(), [&] { explained([&] { trainer->run(command, options); }); }, result);
  } catch (const std::exception& error) {
    trainer->failed(error);
    throw;
  }
}

}  // namespace emox
