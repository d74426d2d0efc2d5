#include "model/training/training_step.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <utility>

#include "model/moe/balance.h"
#include "runtime/core/error.h"
#include "runtime/core/idx.h"
#include "runtime/ops/balance.h"
#include "runtime/ops/basic.h"
#include "runtime/ops/fault.h"
#include "runtime/telemetry/spans.h"

namespace emox {
namespace {
// Places of the single numbers behind counts and document experts in integers_.
enum Extra : std::int64_t { kDocuments, kPoolSizes, kSaveFinished, kExtras };
// Places in a row of totals_: the fault word that bodies write themselves, sums of the losses, the squared gradient
// norm, and what the host adds: votes, dispatch counters.
enum Total : std::int64_t {
  kFault,
  kCe,
  kLmZ,  // beside kCe: ops::lm_head_loss adds to both
  kLb,
  kRouterZ,
  kSquareSum,
  kHost,
  kStop = kHost,
  kSave,
  kUseful,
  kCounters,
  kTotals = kCounters + DispatchCounters::kCount
};

/// The sign of a NaN means nothing, and messages would show it.
double unsigned_nan(double x) { return std::isnan(x) ? std::abs(x) : x; }
}  // namespace

/// What the host knows of a step on this rank.
struct TrainingStep::Sums {
  std::int64_t documents = 0, pool_sizes = 0;  // since the last reduce_counts
  std::int64_t reductions = 0;
};

TrainingStep::TrainingStep(Context& ctx, const StepConfig& config, LanguageModel& model, ProcessMesh& mesh,
                           const StepResources& resources)
    : ctx_(ctx),
      model_(model),
      comm_(mesh.world()),
      optimizer_(ctx, model.parameters(), mesh),
      step_(config),
      config_(step_.model),
      pools_(resources.pools),
      batch_(config.batch_sequences) {
  if (config_.is_moe() && config_.pool == PoolMode::Label)
    label_pools_ = label_pools(config_.routed_experts(), config_.routed_top_k(), resources.label_count);
  divisor_ = static_cast<double>(batch_ * (config_.sequence_length - 1));
  const bool device = ctx.queue != nullptr;
  optimizer_.reduce(device && config.overlap_gradients ? ShardedBuffer::Reduce::WhenReady : config.reduce);
  optimizer_.gather_meanwhile(config.overlap_weights);
  plan_memory(resources.free_memory);
  reserve_sums();
}

void TrainingStep::reserve_sums() {
  const std::int64_t layers = config_.layers, n = config_.is_moe() ? config_.routed_experts() : 0;
  integers_ = Tensor(ctx_.device, DType::I64, {layers * n + layers + kExtras});
  step_integers_ = Tensor(ctx_.device, DType::I64, {layers * n + layers + kExtras});
  if (config_.balance_scope == BalanceScope::Local) own_counts_ = Tensor(ctx_.device, DType::I64, {layers, n});
  p_sum_ = Tensor(ctx_.device, DType::F64, {layers, n});
  z_sum_ = Tensor(ctx_.device, DType::F64, {layers, 1});
  balance_ = Tensor(ctx_.device, DType::F32, {layers, n});
  totals_ = Tensor(ctx_.device, DType::F64, {comm_.size(), kTotals});
  statistics_ = {counts_of(integers_), p_sum_, z_sum_,
                 integers_.view().rows(layers * n, layers * n + layers).reshape({layers, 1})};
}

void TrainingStep::initialize_weights(std::uint64_t seed) {
  if (model_.parameters().weight_type() == DType::F32) return model_.initialize(ctx_, seed);
  optimizer_.fill_weights(ctx_, [&](const NamedParameter& p, TensorView part, std::int64_t first) {
    LanguageModel::draw(ctx_, seed, p, part, first);
  });
}

TensorView TrainingStep::counts_of(TensorView integers) const {
  const std::int64_t layers = config_.layers, n = config_.is_moe() ? config_.routed_experts() : 0;
  return integers.rows(0, layers * n).reshape({layers, n});
}

TensorView TrainingStep::own_total(std::int64_t at, std::int64_t n) const {
  return totals_.view()[comm_.rank()].rows(at, at + n);
}

void TrainingStep::forward(std::size_t m, std::int64_t step, bool count) {
  const Span span(ctx_, "phase.forward");
  const PoolPlan pools{config_.pool == PoolMode::Off ? nullptr : pools_, label_pools_.empty() ? nullptr : &label_pools_,
                       step};
  batch_of(m).upload(ctx_, micro_host_[m], draw_pools(config_, micro_host_[m].documents, pools));
  routing_is_new_ = count;
  ExpertParallel* const experts = model_.experts();
  if (experts != nullptr) experts->begin_micro_batch(m, !count);
  model_.forward(ctx_, slot(m), batch_of(m), count && config_.is_moe() ? &statistics_ : nullptr);
  routing_is_new_ = false;
  if (experts != nullptr) experts->begin_micro_batch(0, false);  // other passes are new
}

void TrainingStep::head(std::size_t m) {
  const Span span(ctx_, "phase.forward");
  model_.loss(
      ctx_, slot(m), batch_of(m),
      {.sums = own_total(kCe, 2), .gradient = true, .inverse_divisor = 1.0 / divisor_, .z_weight = step_.lm_z_weight});
}

void TrainingStep::backward(std::size_t m, bool balanced) {
  const Span span(ctx_, "phase.backward");
  const double z = config_.router_z_weight / static_cast<double>(config_.layers) / divisor_;
  LanguageModel::BackwardRequest request{.balance = balanced ? balance_.view() : TensorView{},
                                         .z = static_cast<float>(z),
                                         .expert_beta = m == 0 ? 0.0F : 1.0F};
  if (m + 1 == micro_host_.size())  // of the others, more is to come
    request.ready = [this](std::span<const ParameterRange> s) { optimizer_.start_reduction(ctx_, s); };
  model_.backward(ctx_, slot(m), batch_of(m), request);
}

// Sums the counts, and what rides with them, over the ranks; the host reads none of it before the step ends. Afterwards
// the balance loss sees the sums, or under local scope this rank's own counts.
void TrainingStep::reduce_counts(const StepVotes& votes, Sums& sums) {
  const Span span(ctx_, "phase.reduce");
  const std::int64_t end = integers_.view().numel();
  const std::int64_t extras[kExtras] = {sums.documents, sums.pool_sizes, votes.save_finished ? 1 : 0};
  ops::copy_from_host(ctx_, integers_.view().rows(end - kExtras, end), extras);
  if (config_.balance_scope == BalanceScope::Local) ops::copy(ctx_, own_counts_, statistics_.counts);
  {
    const Span wait(ctx_, "comm.counts");
    comm_.all_reduce(integers_);
  }
  ops::add_counts(ctx_, step_integers_, integers_);
  ops::add_sum(ctx_, own_total(kRouterZ), z_sum_);
  sums.documents = sums.pool_sizes = 0;
  ++sums.reductions;
}

void TrainingStep::balance_loss(double divisor) {
  const TensorView counts = config_.balance_scope == BalanceScope::Local ? own_counts_.view() : statistics_.counts;
  ops::balance_gradient(ctx_, balance_, own_total(kLb), counts, p_sum_,
                        {config_.balance_weight, config_.routed_top_k(), divisor});
}

void TrainingStep::make_micro_batches(std::span<const SequenceInput> local) {
  micro_host_.clear();
  for (std::int64_t m = 0; m < micro_batches_; ++m) {
    const auto begin = std::min(local.size(), idx(m * micro_));
    const auto end = std::min(local.size(), idx((m + 1) * micro_));
    micro_host_.push_back(make_micro_batch(config_, step_.eos, local.subspan(begin, end - begin)));
  }
}

void TrainingStep::clear_statistics() {
  ops::zero(ctx_, integers_);
  ops::zero(ctx_, p_sum_);
  ops::zero(ctx_, z_sum_);
}

// Documents and pool sizes of a micro-batch, for the metrics; they ride with the counts.
void TrainingStep::count_documents(std::size_t m, std::int64_t step, Sums& sums) const {
  if (!config_.is_moe()) return;
  const std::int64_t n = config_.routed_experts();
  sums.documents += static_cast<std::int64_t>(micro_host_[m].documents.size());
  for (const PoolDocument& d : micro_host_[m].documents)
    for (std::int64_t l = 0; l < config_.layers; ++l) {
      std::int64_t size = n;
      if (!label_pools_.empty())
        size =
            std::count(label_pools_.begin() + d.domain * n, label_pools_.begin() + (d.domain + 1) * n, std::uint8_t{1});
      else if (config_.pool != PoolMode::Off && pools_ != nullptr)
        size = std::min(n, pools_->size(step, l, d));
      sums.pool_sizes += size;
    }
}

// Every count of the step is known before the first backward pass: all micro-batches are held, or their forward pass
// runs a second time. Without a balance loss nothing waits for the counts.
void TrainingStep::run_whole_step(std::int64_t step, const StepVotes& votes, Sums& sums) {
  const bool balanced = config_.is_moe() && config_.balance == BalanceMode::Aux;
  const std::size_t count = micro_host_.size();
  clear_statistics();
  for (std::size_t m = 0; m < count; ++m) {
    forward(m, step, true);
    count_documents(m, step, sums);
    if (!recompute_) head(m);
    if (!balanced) backward(m, false);
  }
  reduce_counts(votes, sums);
  if (!balanced) return;
  balance_loss(static_cast<double>(batch_ * config_.sequence_length));
  for (std::size_t m = 0; m < count; ++m) {
    if (recompute_) {
      forward(m, step, false);
      head(m);
    }
    backward(m, true);
  }
}

// The reference's scope, one statistic a micro-batch index over all ranks, and the local one (design 4.7).
void TrainingStep::run_micro_batches(std::int64_t step, const StepVotes& votes, Sums& sums) {
  const bool local = config_.balance_scope == BalanceScope::Local;
  double scored = 0;
  for (const MicroBatch& b : micro_host_) scored += static_cast<double>(b.scored);
  // The mean of the ranks' own losses, over those that have sequences.
  const auto ranks = static_cast<double>(std::min<std::int64_t>(comm_.size(), batch_));
  const double divisor = local ? scored * ranks : divisor_;
  for (std::size_t m = 0; m < micro_host_.size(); ++m) {
    clear_statistics();
    forward(m, step, true);
    count_documents(m, step, sums);
    head(m);
    reduce_counts(votes, sums);
    balance_loss(divisor);
    backward(m, true);
  }
}

// A device computes on while the host does other things: what a rank waits there, its queue knows (exposed_comm_s).
double TrainingStep::UsefulTime::waited(const Context& ctx) {
  double s = 0;
  for (const char* name : {"comm.counts", "comm.gradients", "comm.weights", "comm.losses"})
    s += ctx.telemetry->seconds(name);
  return s;
}

void TrainingStep::UsefulTime::begin(const Context& ctx) {
  if (ctx.telemetry == nullptr || ctx.queue != nullptr) return;
  began_ = Clock::now(), waited_before_ = waited(ctx);
}

void TrainingStep::UsefulTime::end(const Context& ctx, double exchanges) {
  if (ctx.telemetry == nullptr || ctx.queue != nullptr) return;
  const double all = std::chrono::duration<double>(Clock::now() - began_).count();
  seconds_ += std::max(0.0, all - (waited(ctx) - waited_before_) - exchanges);
}

double TrainingStep::UsefulTime::take(const Context& ctx) {
  if (ctx.telemetry == nullptr || ctx.queue != nullptr) return std::numeric_limits<double>::quiet_NaN();
  return std::exchange(seconds_, 0);
}

StepMetrics TrainingStep::compute_gradients(std::int64_t step, std::span<const SequenceInput> local,
                                            const StepVotes& votes) {
  useful_.begin(ctx_);
  make_micro_batches(local);
  const ops::FaultScope faults(ctx_, own_total(kFault, 1));
  Sums sums;
  ops::zero(ctx_, step_integers_);
  ops::zero(ctx_, totals_.view()[comm_.rank()]);
  {
    const Span span(ctx_, "phase.optimizer");
    const ParameterStore& store = model_.parameters();
    ops::zero(ctx_, store.grad(store.flat(ParameterGroup::Dense)));  // the first micro-batch assigns the experts'
  }
  if (model_.experts() != nullptr) model_.experts()->counters().clear();
  const bool aux = config_.is_moe() && config_.balance == BalanceMode::Aux;
  if (aux && config_.balance_scope != BalanceScope::Step)
    run_micro_batches(step, votes, sums);
  else
    run_whole_step(step, votes, sums);
  const Span span(ctx_, "phase.reduce");
  optimizer_.reduce_gradients(ctx_);
  return metrics_of(sums, votes);
}

// On every rank the same: the first rank that has one.
void TrainingStep::throw_faults(const std::vector<double>& gathered) const {
  for (int rank = 0; rank < comm_.size(); ++rank)
    if (const auto fault = ops::fault_of(gathered[idx(rank * kTotals + kFault)]))
      fail("{} on rank {}: an index that was made there is wrong, so the step's numbers are. Nothing was updated in it",
           ops::text_of(*fault), rank);
}

// Losses, the norm, votes, what dispatch counted: gathered, and added here in rank order. A reduction's own order may
// follow the nodes, and after a requeue those are others.
StepMetrics TrainingStep::metrics_of(const Sums& sums, const StepVotes& votes) {
  std::vector<double> from_host(kTotals - kHost, 0.0);
  const auto place = [&](std::int64_t total) -> double& { return from_host[idx(total - kHost)]; };
  const LateVotes late = votes.late ? votes.late() : LateVotes{};
  place(kStop) = late.stop ? 1 : 0, place(kSave) = late.save ? 1 : 0;
  if (model_.experts() != nullptr) {
    DispatchCounters& counters = model_.experts()->counters();
    if (ctx_.queue != nullptr && ctx_.telemetry != nullptr) {
      // What the compute queue waited for transfers, as far as the device has come; the rest counts in the next step.
      const double exposed = ctx_.telemetry->seconds("comm.exposed");
      counters[DispatchCounters::ExposedSeconds] = exposed - (exposed >= exposed_seen_ ? exposed_seen_ : 0.0);
      exposed_seen_ = exposed;
    }
    std::copy(counters.values.begin(), counters.values.end(), &place(kCounters));
  }
  useful_.end(ctx_, from_host[idx(kCounters - kHost) + DispatchCounters::ExposedSeconds]);
  place(kUseful) = useful_.take(ctx_);
  optimizer_.add_owned_squares(ctx_, own_total(kSquareSum));
  ops::copy_from_host(ctx_, own_total(kHost, kTotals - kHost), from_host.data());
  {
    const Span span(ctx_, "comm.losses");
    comm_.all_gather(totals_, totals_.view()[comm_.rank()]);
  }
  // Where ranks wait for each other's devices, the watchdog sees it.
  if (comm_.queue() != nullptr) comm_.wait_for(*ctx_.queue->record());
  const auto gathered = ops::to_host<double>(ctx_, totals_);
  const auto integers = ops::to_host<std::int64_t>(ctx_, step_integers_);
  throw_faults(gathered);
  const double router_z = config_.router_z_weight / static_cast<double>(config_.layers) / divisor_;
  std::vector<double> total(kTotals, 0.0), received, useful;
  for (std::size_t at = 0; at < gathered.size(); at += kTotals) {
    const auto value = [&](std::size_t i) {
      const double x = gathered[at + i];
      return i == kCe ? x / divisor_ : i == kLmZ ? step_.lm_z_weight * x / divisor_ : i == kRouterZ ? x * router_z : x;
    };
    for (std::size_t i = 0; i < kTotals; ++i) total[i] += value(i);
    received.push_back(gathered[at + kCounters + DispatchCounters::ReceivedRows]);
    useful.push_back(gathered[at + kUseful]);
  }
  for (std::size_t i = 0; i < kHost; ++i) total[i] = unsigned_nan(total[i]);
  StepMetrics r;
  r.ce = total[kCe], r.lm_z = total[kLmZ], r.lb = total[kLb], r.router_z = total[kRouterZ];
  r.stop = total[kStop] > 0, r.save = total[kSave] > 0;
  const std::int64_t* const extras = integers.data() + integers.size() - kExtras;
  r.save_finished = extras[kSaveFinished] == sums.reductions * comm_.size();
  r.grad_norm = std::sqrt(total[kSquareSum]);
  r.useful_s_min = *std::min_element(useful.begin(), useful.end());
  r.useful_s_max = *std::max_element(useful.begin(), useful.end());
  r.useful_s_mean = total[kUseful] / comm_.size();
  if (!config_.is_moe() || extras[kDocuments] == 0) return r;
  r.dispatch = dispatch_metrics(std::span(total).subspan(kCounters), received);
  const double documents = static_cast<double>(extras[kDocuments]) * static_cast<double>(config_.layers);
  const auto counts = idx(statistics_.counts.numel());
  r.experts_per_document =
      static_cast<double>(std::accumulate(integers.data() + counts, extras, std::int64_t{0})) / documents;
  r.pool_mean = static_cast<double>(extras[kPoolSizes]) / documents;
  r.load_max_over_mean = load_max_over_mean(config_, std::span(integers).first(counts));
  return r;
}

DispatchMetrics TrainingStep::dispatch_metrics(std::span<const double> c, std::span<const double> rows_of_rank) const {
  const auto per = [&](DispatchCounters::Name a, DispatchCounters::Name b) { return c[b] > 0 ? c[a] / c[b] : 0.0; };
  using enum DispatchCounters::Name;
  DispatchMetrics d;
  d.rows_sent_per_token = per(Rows, TokenVisits);
  d.ranks_per_token = per(Ranks, TokenVisits);
  d.nodes_per_token = per(Nodes, TokenVisits);
  d.bytes_intra_node = c[BytesIntra];
  d.bytes_inter_node = c[BytesInter];
  d.bytes_saved = c[BytesCopies] - c[BytesIntra] - c[BytesInter];
  d.exposed_comm_s = c[ExposedSeconds] / comm_.size();
  d.ranks_per_document = per(DocumentRanks, Documents);
  if (c[ReceivedRows] > 0)
    d.rows_max_over_mean = *std::max_element(rows_of_rank.begin(), rows_of_rank.end()) * comm_.size() / c[ReceivedRows];
  return d;
}

void TrainingStep::update(std::int64_t step, double learning_rate, const StepMetrics& metrics) {
  if (!std::isfinite(metrics.loss()) || !std::isfinite(metrics.grad_norm))
    fail<DivergedError>("step {}: loss {}, gradient norm {}: {}. Nothing was updated in this step", step,
                        metrics.loss(), metrics.grad_norm, optimizer_.describe_non_finite(ctx_));
  const Span span(ctx_, "phase.optimizer");
  useful_.begin(ctx_);
  optimizer_.update(ctx_, step_.adamw, learning_rate, clip_factor(metrics.grad_norm, step_.adamw.clip_norm), step);
  useful_.end(ctx_, 0);
  if (!config_.is_moe() || config_.balance != BalanceMode::Bias) return;
  ops::move_selection_bias(ctx_, model_.selection_bias(), counts_of(step_integers_), config_.bias_rate);
}

}  // namespace emox
