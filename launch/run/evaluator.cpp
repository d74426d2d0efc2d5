#include "launch/run/evaluator.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <nlohmann/json.hpp>
#include <numbers>
#include <utility>

#include "model/moe/pools.h"
#include "runtime/core/error.h"
#include "runtime/core/idx.h"
#include "runtime/ops/basic.h"
#include "runtime/telemetry/spans.h"

namespace emox {
namespace {

/// A stretch of one document: places in "EOS, document, EOS" of what the model reads; it predicts the next ones.
struct Window {
  std::size_t document = 0;  // in its domain
  std::size_t begin = 0, end = 0;
};

/// What one forward pass reads, of one domain.
struct Pass {
  std::size_t domain = 0;
  std::vector<Window> windows;
};

// The same on any number of ranks, so that each pass, and with it every sum, is the same whoever makes it. Passes are
// full but for the last of a domain: however long single documents are, ranks that take turns have equal work.
std::vector<Pass> plan_passes(const std::vector<HeldOut>& held_out, std::size_t length, std::size_t max_tokens) {
  std::vector<Pass> passes;
  for (std::size_t s = 0; s < held_out.size(); ++s) {
    std::size_t tokens = max_tokens;  // of the domain's last pass; full at first
    for (std::size_t i = 0; i < held_out[s].documents.size(); ++i) {
      const std::size_t scored = held_out[s].documents[i].size() + 1;
      for (std::size_t begin = 0; begin < scored; begin += length) {
        const std::size_t end = std::min(begin + length, scored);
        if (tokens + (end - begin) > max_tokens) {
          passes.push_back({s, {}});
          tokens = 0;
        }
        tokens += end - begin;
        passes.back().windows.push_back({i, begin, end});
      }
    }
  }
  return passes;
}

/// A pass with the tokens that it reads.
class PassInput {
 public:
  PassInput() = default;
  PassInput(const Pass& pass, const HeldOut& source, std::int32_t eos) {
    for (const Window& w : pass.windows) {
      const std::vector<std::int32_t>& document = source.documents[w.document];
      const auto at = [&](std::size_t i) { return i == 0 || i > document.size() ? eos : document[i - 1]; };
      std::vector<std::int32_t> text;
      for (std::size_t i = w.begin; i <= w.end; ++i) text.push_back(at(i));
      texts_.push_back(std::move(text));
    }
    for (std::size_t i = 0; i < texts_.size(); ++i) {
      const std::span<const std::int32_t> text = texts_[i];
      sequences_.push_back({text.first(text.size() - 1), text.last(text.size() - 1), static_cast<std::int64_t>(i), 0});
      windows_.push_back({pass.domain, pass.windows[i].document, text.first(text.size() - 1)});
    }
  }
  std::span<const SequenceInput> sequences() const { return sequences_; }
  std::span<const ScoredWindow> windows() const { return windows_; }

 private:
  std::vector<std::vector<std::int32_t>> texts_;  // one token more than the model reads
  std::vector<SequenceInput> sequences_;
  std::vector<ScoredWindow> windows_;
};

// What is not known: the loss without tokens, bits a byte where only token ids are known.
constexpr double kUnknown = std::numeric_limits<double>::quiet_NaN();

nlohmann::ordered_json number_or_null(double value) {
  return std::isfinite(value) ? nlohmann::ordered_json(value) : nlohmann::ordered_json(nullptr);
}
std::string text_of(double bits) { return std::isnan(bits) ? "-" : fmt::format("{:.4f}", bits); }

std::vector<std::int64_t> largest(Communicator& comm, std::vector<std::int64_t> own) {
  comm.all_reduce(TensorView(own.data(), DType::I64, {static_cast<std::int64_t>(own.size())}), ReduceOp::Max);
  return own;
}

// Every rank has read the files by itself. Ranks with other documents would make other numbers of passes.
void check_same_text(Communicator& comm, std::int64_t passes, std::int64_t tokens) {
  const auto most = largest(comm, {passes, -passes, tokens, -tokens});
  require<IoError>(most[0] == -most[1] && most[2] == -most[3],
                   "the ranks have read different held-out documents: {} to {} tokens. Do all nodes see the same "
                   "files?",
                   -most[3], most[2]);
}

}  // namespace

double DomainLoss::loss() const { return tokens > 0 ? nats / static_cast<double>(tokens) : kUnknown; }

double DomainLoss::bits_per_byte() const {
  return bytes > 0 ? nats / std::numbers::ln2 / static_cast<double>(bytes) : kUnknown;
}

double Evaluation::mean_of(double (DomainLoss::*value)() const) const {
  double sum = 0, count = 0;
  for (const DomainLoss& d : domains)
    if (d.tokens > 0) sum += (d.*value)(), count += 1;
  return count > 0 ? sum / count : kUnknown;
}

std::vector<std::string> Evaluation::without_text() const {
  std::vector<std::string> labels;
  for (const DomainLoss& d : domains)
    if (d.tokens == 0) labels.push_back(d.label);
  return labels;
}

nlohmann::ordered_json Evaluation::to_json() const {
  nlohmann::ordered_json by_domain = nlohmann::ordered_json::object();
  for (const DomainLoss& d : domains)
    by_domain[d.label] = {{"documents", d.documents},
                          {"bytes", d.bytes},
                          {"tokens", d.tokens},
                          {"loss", number_or_null(d.loss())},
                          {"bits_per_byte", number_or_null(d.bits_per_byte())}};
  return {{"step", step},
          {"experts_kept", experts_kept},
          {"domains", by_domain},
          {"mean", {{"loss", number_or_null(mean_loss())}, {"bits_per_byte", number_or_null(mean_bits_per_byte())}}}};
}

std::string Evaluation::to_text() const {
  std::size_t width = 4;
  for (const DomainLoss& d : domains) width = std::max(width, d.label.size());
  std::string text = fmt::format("held-out loss after step {}\n{:<{}}  documents     tokens  nats/token  bits/byte\n",
                                 step, "domain", width);
  for (const DomainLoss& d : domains)
    text += fmt::format("{:<{}}  {:>9}  {:>9}  {:>10}  {:>9}\n", d.label, width, d.documents, d.tokens,
                        d.tokens > 0 ? fmt::format("{:.4f}", d.loss()) : "-", text_of(d.bits_per_byte()));
  const auto left_out = without_text();
  text += fmt::format("{:<{}}  {:>9}  {:>9}  {:>10}  {:>9}\n", "mean", width, "", "",
                      left_out.size() < domains.size() ? fmt::format("{:.4f}", mean_loss()) : "-",
                      text_of(mean_bits_per_byte()));
  if (!left_out.empty())
    text += fmt::format("not in the mean, for want of held-out tokens: {}\n", fmt::join(left_out, ", "));
  return text;
}

Evaluation evaluate(Context& ctx, LanguageModel& model, Communicator& comm, const EvaluationRequest& request,
                    const EvaluationMemory& memory) {
  const Span span(ctx, "phase.evaluation");
  const std::vector<HeldOut>& held_out = request.held_out;
  const EvaluationHooks& hooks = request.hooks;
  const ModelConfig& config = model.config();
  const auto sizes = fixed_pool_sizes(config.eval_pool);
  const PoolPlan pools{config.eval_pool > 0 ? sizes.get() : nullptr, nullptr, request.step};

  Evaluation result{request.step, config.num_experts, {}};
  std::int64_t tokens = 0;
  for (const HeldOut& source : held_out) {
    DomainLoss d{source.label, static_cast<std::int64_t>(source.documents.size()), source.bytes, 0, 0};
    for (const auto& document : source.documents) d.tokens += static_cast<std::int64_t>(document.size()) + 1;
    tokens += d.tokens;
    result.domains.push_back(d);
  }
  const std::int64_t room = -largest(comm, {-memory.max_tokens})[0];  // of the rank with the least
  const std::vector<Pass> passes = plan_passes(held_out, idx(config.sequence_length), idx(room));
  const auto count = static_cast<std::int64_t>(passes.size());
  check_same_text(comm, count, tokens);

  const Tensor sums(ctx.device, DType::F64, {count + 1, 2});  // nats and z of every pass; the last row stays 0
  // Experts may be on other ranks: all make as many passes, in the last round perhaps without tokens.
  for (std::int64_t first = 0; first < count; first += comm.size()) {
    if (largest(comm, {hooks.stop && hooks.stop() ? 1 : 0})[0] != 0) throw EvaluationStopped();
    if (hooks.progress) hooks.progress(first, count);
    const std::int64_t own = first + comm.rank();
    PassInput input;
    if (own < count) {
      const Pass& pass = passes[idx(own)];
      input = PassInput(pass, held_out[pass.domain], request.eos);
    }
    const MicroBatch micro = make_micro_batch(config, request.eos, input.sequences());
    memory.batch.upload(ctx, micro, draw_pools(config, micro.documents, pools));
    if (hooks.observer) hooks.observer(input.windows());
    model.forward(ctx, memory.activations, memory.batch, nullptr);
    model.loss(ctx, memory.activations, memory.batch, {.sums = sums.view()[std::min(own, count)]});
  }
  if (hooks.progress) hooks.progress(count, count);
  // A pass is one rank's, and 0 elsewhere: exact in any order. Then each domain's are added in their own.
  comm.all_reduce(sums);
  const auto nats = ops::to_host<double>(ctx, sums);
  for (std::size_t p = 0; p < passes.size(); ++p) result.domains[passes[p].domain].nats += nats[2 * p];
  return result;
}

}  // namespace emox
