#include "launch/train/evaluator.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <nlohmann/json.hpp>
#include <numbers>

#include "model/moe/pools.h"
#include "runtime/ops/basic.h"
#include "runtime/telemetry/spans.h"

namespace emox {
namespace {

/// One window of a document: what the model reads and what it should say.
struct Window {
  std::size_t document = 0;  // in its domain
  std::vector<std::int32_t> tokens, labels;
};

void append_windows(std::vector<Window>& out, std::size_t number, const std::vector<std::int32_t>& document,
                    std::int32_t eos, std::size_t length) {
  std::vector<std::int32_t> text{eos};
  text.insert(text.end(), document.begin(), document.end());
  text.push_back(eos);
  for (std::size_t begin = 0; begin + 1 < text.size(); begin += length) {
    const std::size_t end = std::min(begin + length, text.size() - 1);
    const auto at = [&](std::size_t i) { return text.begin() + static_cast<std::ptrdiff_t>(i); };
    out.push_back({number, {at(begin), at(end)}, {at(begin + 1), at(end + 1)}});
  }
}

/// Sequences of one forward pass, of one domain.
struct Pass {
  std::size_t domain = 0;
  std::vector<SequenceInput> sequences;
  std::vector<ScoredWindow> windows;
};

void append_passes(std::vector<Pass>& out, std::size_t domain, const std::vector<Window>& windows,
                   std::int64_t max_tokens) {
  std::int64_t tokens = max_tokens;  // of the last pass; full at first
  for (std::size_t i = 0; i < windows.size(); ++i) {
    const auto size = static_cast<std::int64_t>(windows[i].tokens.size());
    if (tokens + size > max_tokens) {
      out.push_back({domain, {}, {}});
      tokens = 0;
    }
    tokens += size;
    out.back().sequences.push_back({windows[i].tokens, windows[i].labels, static_cast<std::int64_t>(i), 0});
    out.back().windows.push_back({domain, windows[i].document, windows[i].tokens});
  }
}

// Bits a byte are unknown (NaN) where only token ids are known.
nlohmann::ordered_json json_of(double bits) {
  return std::isnan(bits) ? nlohmann::ordered_json(nullptr) : nlohmann::ordered_json(bits);
}
std::string bits_text(double bits) { return std::isnan(bits) ? "-" : fmt::format("{:.4f}", bits); }

std::size_t most_passes(Context& ctx, Communicator& comm, std::size_t mine) {
  const Tensor most(ctx.device, DType::I64, {1});
  const auto value = static_cast<std::int64_t>(mine);
  ops::copy_from_host(ctx, most, &value);
  comm.all_reduce(most, ReduceOp::Max);
  return static_cast<std::size_t>(ops::to_host<std::int64_t>(ctx, most)[0]);
}

}  // namespace

double DomainLoss::bits_per_byte() const {
  return bytes > 0 ? nats / std::numbers::ln2 / static_cast<double>(bytes) : std::numeric_limits<double>::quiet_NaN();
}

double Evaluation::mean_loss() const {
  double sum = 0;
  for (const DomainLoss& d : domains) sum += d.loss() / static_cast<double>(domains.size());
  return sum;
}

double Evaluation::mean_bits_per_byte() const {
  double sum = 0;
  for (const DomainLoss& d : domains) sum += d.bits_per_byte() / static_cast<double>(domains.size());
  return sum;
}

nlohmann::ordered_json Evaluation::to_json() const {
  nlohmann::ordered_json by_domain = nlohmann::ordered_json::object();
  for (const DomainLoss& d : domains)
    by_domain[d.label] = {{"documents", d.documents},
                          {"bytes", d.bytes},
                          {"tokens", d.tokens},
                          {"loss", d.loss()},
                          {"bits_per_byte", json_of(d.bits_per_byte())}};
  return {{"step", step},
          {"experts_kept", experts_kept},
          {"domains", by_domain},
          {"mean", {{"loss", mean_loss()}, {"bits_per_byte", json_of(mean_bits_per_byte())}}}};
}

std::string Evaluation::to_text() const {
  std::size_t width = 4;
  for (const DomainLoss& d : domains) width = std::max(width, d.label.size());
  std::string text = fmt::format("held-out loss after step {}\n{:<{}}  documents     tokens  nats/token  bits/byte\n",
                                 step, "domain", width);
  for (const DomainLoss& d : domains)
    text += fmt::format("{:<{}}  {:>9}  {:>9}  {:>10.4f}  {:>9}\n", d.label, width, d.documents, d.tokens, d.loss(),
                        bits_text(d.bits_per_byte()));
  return text + fmt::format("{:<{}}  {:>9}  {:>9}  {:>10.4f}  {:>9}\n", "mean", width, "", "", mean_loss(),
                            bits_text(mean_bits_per_byte()));
}

Evaluation evaluate(Context& ctx, LanguageModel& model, Communicator& comm, const std::vector<HeldOut>& held_out,
                    std::int32_t eos, std::int64_t step, Activations& activations, DeviceBatch& batch,
                    std::int64_t max_tokens, const PassObserver& observer) {
  const Span span(ctx, "phase.evaluation");
  const ModelConfig& config = model.config();
  const auto length = static_cast<std::size_t>(config.sequence_length);
  const auto sizes = fixed_pool_sizes(config.eval_pool);
  const PoolPlan pools{config.eval_pool > 0 ? sizes.get() : nullptr, nullptr, step};

  Evaluation result{step, config.num_experts, {}};
  std::vector<double> sums(held_out.size(), 0.0);  // nats a domain
  std::vector<std::vector<Window>> windows(held_out.size());
  std::vector<Pass> passes;
  for (std::size_t s = 0; s < held_out.size(); ++s) {
    const HeldOut& source = held_out[s];
    DomainLoss d{source.label, static_cast<std::int64_t>(source.documents.size()), source.bytes, 0, 0};
    for (std::size_t i = 0; i < source.documents.size(); ++i) {
      d.tokens += static_cast<std::int64_t>(source.documents[i].size()) + 1;
      if (static_cast<int>(i) % comm.size() == comm.rank())
        append_windows(windows[s], i, source.documents[i], eos, length);
    }
    append_passes(passes, s, windows[s], max_tokens);
    result.domains.push_back(d);
  }
  // Experts may be on other ranks: all run as many passes as the one with the most, the others with no tokens.
  passes.resize(most_passes(ctx, comm, passes.size()));
  for (const Pass& pass : passes) {
    const MicroBatch micro = make_micro_batch(config, eos, pass.sequences);
    batch.upload(ctx, micro);
    if (observer) observer(pass.windows);
    model.forward(ctx, activations, batch, micro.documents, pools, nullptr);
    sums[pass.domain] += model.loss(ctx, activations, batch, false, 1.0, 0.0, {}).ce;
  }
  const Tensor total(ctx.device, DType::F64, {static_cast<std::int64_t>(sums.size())});
  ops::copy_from_host(ctx, total, sums.data());
  comm.all_reduce(total);
  const auto nats = ops::to_host<double>(ctx, total);
  for (std::size_t i = 0; i < nats.size(); ++i) result.domains[i].nats = nats[i];
  return result;
}

}  // namespace emox
