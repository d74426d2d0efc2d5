#include "model/modularity/select_experts.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "runtime/core/error.h"
#include "runtime/core/idx.h"
#include "runtime/ops/basic.h"
#include "runtime/rng/philox.h"
#include "runtime/telemetry/spans.h"

namespace emox {
namespace {

using Scores = std::vector<std::vector<double>>;  ///< [layers, experts]

/// Runs the text and sums what the ops say of each sequence.
class Calibration {
 public:
  Calibration(Context& ctx, LanguageModel& model, Communicator& comm, InferenceMemory& memory,
              const CalibrationText& text)
      : ctx_(ctx), model_(model), comm_(comm), memory_(memory), text_(text) {
    const ModelConfig& m = model.config();
    const std::int64_t layers = m.layers, n = m.routed_experts();
    require<UsageError>(!text.sequences.empty(), "there is no text to choose experts by");
    for (const auto& sequence : text.sequences) {
      const auto length = static_cast<std::int64_t>(sequence.size());
      require<ShapeError>(length > 0 && length <= memory.max_tokens, "a sequence of {} tokens, memory is for 1 to {}",
                          length, memory.max_tokens);
      tokens_ += length;
    }
    counts_ = Tensor(ctx.device, DType::I64, {layers, n});
    p_sum_ = Tensor(ctx.device, DType::F64, {layers, n});
    z_sum_ = Tensor(ctx.device, DType::F64, {layers, 1});
    document_experts_ = Tensor(ctx.device, DType::I64, {layers, 1});
  }

  std::int64_t tokens() const { return tokens_; }

  /// [layers, n_r] mean probability of each routed expert; of the layers [first, last) only.
  Scores probabilities(std::int64_t first, std::int64_t last) {
    const RoutingStatistics statistics{counts_, p_sum_, z_sum_, document_experts_};
    Scores scores = run({last, &statistics, nullptr}, p_sum_.view().rows(first, last));
    for (auto& layer : scores)
      for (double& x : layer) x /= static_cast<double>(tokens_);
    return scores;
  }
  /// [layers, N]
  Scores outputs() {
    const OutputScores& o = memory_.output_scores;
    return run({model_.config().layers, nullptr, &o}, o.sums);
  }

 private:
  /// `sums` f64 [layers, columns] is what the observation adds to: over all sequences, in their order.
  Scores run(const Observation& observation, TensorView sums) {
    const auto count = static_cast<std::int64_t>(text_.sequences.size()),
               ranks = static_cast<std::int64_t>(comm_.size()), layers = sums.dim(0), columns = sums.dim(1),
               width = layers * columns;
    Scores total(idx(layers), std::vector<double>(idx(columns), 0.0));
    const Tensor round(ctx_.device, DType::F64, {ranks, width});
    // All ranks run as many passes: experts of one may be asked by tokens of another.
    for (std::int64_t first = 0; first < count; first += ranks) {
      ops::zero(ctx_, round);
      forward(first + comm_.rank(), observation, sums);
      if (first + comm_.rank() < count)
        ops::copy(ctx_, round.view().rows(comm_.rank(), comm_.rank() + 1), sums.reshape({1, width}));
      comm_.all_reduce(round);  // one rank's numbers and zeros: exact in any order
      const auto host = ops::to_host<double>(ctx_, round);
      for (std::int64_t r = 0; r < std::min(ranks, count - first); ++r)
        for (std::int64_t i = 0; i < width; ++i) total[idx(i / columns)][idx(i % columns)] += host[idx(r * width + i)];
    }
    return total;
  }

  void forward(std::int64_t sequence, const Observation& observation, TensorView sums) {
    std::vector<SequenceInput> inputs;
    if (sequence < static_cast<std::int64_t>(text_.sequences.size()))
      inputs.push_back({text_.sequences[idx(sequence)], {}, sequence, 0});
    const MicroBatch micro = make_micro_batch(model_.config(), text_.eos, inputs);
    memory_.batch.upload(ctx_, micro);
    ops::zero(ctx_, sums);
    model_.observe(ctx_, memory_.activations, memory_.batch, observation);
  }

  Context& ctx_;
  LanguageModel& model_;
  Communicator& comm_;
  InferenceMemory& memory_;
  const CalibrationText& text_;
  std::int64_t tokens_ = 0;
  Tensor counts_, p_sum_, z_sum_, document_experts_;
};

/// The subset under construction.
class Choice {
 public:
  Choice(const ModelConfig& model, const SelectionRequest& request) : request_(request) {
    subset_.experts = model.num_experts;
    subset_.shared = model.shared_experts;
    subset_.routed.assign(idx(model.layers), std::vector<std::int32_t>(idx(model.routed_experts())));
    for (auto& layer : subset_.routed) std::iota(layer.begin(), layer.end(), 0);
  }

  /// Keeps the experts of highest score in a layer that has all until now.
  void keep_best(std::size_t layer, const std::vector<double>& scores) {
    require<IoError>(std::all_of(scores.begin(), scores.end(), [](double x) { return std::isfinite(x); }),
                     "the scores of layer {} are not finite numbers: the weights are damaged", layer);
    std::vector<std::int32_t>& experts = subset_.routed[layer];
    std::sort(experts.begin(), experts.end(), [&](std::int32_t a, std::int32_t b) {
      const double x = scores[idx(a)], y = scores[idx(b)];
      return x != y ? x > y : a < b;
    });
    const auto kept = idx(request_.keep[layer] - subset_.shared);
    if (kept < experts.size()) {
      const double last = scores[idx(experts[kept - 1])], next = scores[idx(experts[kept])];
      gap_ = std::min(gap_, last > 0 ? (last - next) / last : 0.0);
    }
    experts.resize(kept);
    std::sort(experts.begin(), experts.end());
    subset_.scores.push_back(scores);
  }

  void draw(std::size_t layer) {
    const Philox philox(request_.seed, RngPurpose::ExpertSelection);
    std::vector<std::int32_t>& experts = subset_.routed[layer];
    const auto low = static_cast<std::uint32_t>(request_.stream),
               high = static_cast<std::uint32_t>(request_.stream >> 32);
    for (auto i = static_cast<std::int64_t>(experts.size()) - 1; i > 0; --i) {  // Fisher-Yates
      const PhiloxCounter counter{static_cast<std::uint32_t>(layer), static_cast<std::uint32_t>(i), low, high};
      std::swap(experts[idx(i)], experts[idx(philox.uniform_int(0, i, counter))]);
    }
    experts.resize(idx(request_.keep[layer] - subset_.shared));
    std::sort(experts.begin(), experts.end());
  }

  const std::vector<std::vector<std::int32_t>>& routed() const { return subset_.routed; }

  ExpertSubset finish(std::size_t sequences, std::int64_t tokens) {
    subset_.provenance["method"] = kSelectionMethodNames[idx(request_.method)];
    if (request_.method == SelectionMethod::Random) {
      subset_.provenance["seed"] = request_.seed;
    } else {
      subset_.provenance["sequences"] = sequences;
      subset_.provenance["tokens"] = tokens;
      subset_.provenance["smallest_gap"] = gap_;
    }
    return std::move(subset_);
  }

 private:
  const SelectionRequest& request_;
  ExpertSubset subset_;
  double gap_ = 1.0;  ///< nothing was left out: no choice was close
};

}  // namespace

SelectionMethod parse_selection_method(const std::string& text, const std::string& origin) {
  const auto name = std::find(std::begin(kSelectionMethodNames), std::end(kSelectionMethodNames), text);
  require<UsageError>(name != std::end(kSelectionMethodNames), "{} = {} is not a method; use one of: {}", origin, text,
                      fmt::join(kSelectionMethodNames, ", "));
  return static_cast<SelectionMethod>(name - std::begin(kSelectionMethodNames));
}

ExpertSubset select_experts(Context& ctx, LanguageModel& model, Communicator& comm, InferenceMemory& memory,
                            const CalibrationText& text, const SelectionRequest& request) {
  const Span span(ctx, "phase.selection");
  const auto layers = static_cast<std::int64_t>(request.keep.size());
  require<ShapeError>(layers == model.config().layers, "experts to keep in {} layers, the model has {}", layers,
                      model.config().layers);
  Choice choice(model.config(), request);
  if (request.method == SelectionMethod::Random) {
    for (std::size_t l = 0; l < idx(layers); ++l) choice.draw(l);
    return choice.finish(0, 0);
  }
  model.keep_all_experts(ctx);
  Calibration calibration(ctx, model, comm, memory, text);
  if (request.method == SelectionMethod::Layerwise) {
    for (std::int64_t l = 0; l < layers; ++l) {
      choice.keep_best(idx(l), calibration.probabilities(l, l + 1)[0]);
      model.keep_experts(ctx, choice.routed());
    }
    model.keep_all_experts(ctx);
  } else {
    const Scores scores =
        request.method == SelectionMethod::Global ? calibration.probabilities(0, layers) : calibration.outputs();
    for (std::size_t l = 0; l < idx(layers); ++l) choice.keep_best(l, scores[l]);
  }
  return choice.finish(text.sequences.size(), calibration.tokens());
}

}  // namespace emox
