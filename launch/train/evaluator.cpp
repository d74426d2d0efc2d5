#include "launch/train/evaluator.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <numbers>

#include "model/moe/pools.h"
#include "runtime/ops/basic.h"
#include "runtime/telemetry/spans.h"

namespace emox {
namespace {

/// One window of a document: what the model reads and what it should say.
struct Window {
  std::vector<std::int32_t> tokens, labels;
};

void append_windows(std::vector<Window>& out, const std::vector<std::int32_t>& document, std::int32_t eos,
                    std::size_t length) {
  std::vector<std::int32_t> text{eos};
  text.insert(text.end(), document.begin(), document.end());
  text.push_back(eos);
  for (std::size_t begin = 0; begin + 1 < text.size(); begin += length) {
    const std::size_t end = std::min(begin + length, text.size() - 1);
    const auto at = [&](std::size_t i) { return text.begin() + static_cast<std::ptrdiff_t>(i); };
    out.push_back({{at(begin), at(end)}, {at(begin + 1), at(end + 1)}});
  }
}

}  // namespace

double DomainLoss::bits_per_byte() const {
  return bytes > 0 ? nats / std::numbers::ln2 / static_cast<double>(bytes) : 0;
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
                          {"bits_per_byte", d.bits_per_byte()}};
  return {{"step", step},
          {"experts_kept", experts_kept},
          {"domains", by_domain},
          {"mean", {{"loss", mean_loss()}, {"bits_per_byte", mean_bits_per_byte()}}}};
}

std::string Evaluation::to_text() const {
  std::size_t width = 4;
  for (const DomainLoss& d : domains) width = std::max(width, d.label.size());
  std::string text = fmt::format("held-out loss after step {}\n{:<{}}  documents     tokens  nats/token  bits/byte\n",
                                 step, "domain", width);
  for (const DomainLoss& d : domains)
    text += fmt::format("{:<{}}  {:>9}  {:>9}  {:>10.4f}  {:>9.4f}\n", d.label, width, d.documents, d.tokens, d.loss(),
                        d.bits_per_byte());
  return text + fmt::format("{:<{}}  {:>9}  {:>9}  {:>10.4f}  {:>9.4f}\n", "mean", width, "", "", mean_loss(),
                            mean_bits_per_byte());
}

Evaluation evaluate(Context& ctx, LanguageModel& model, Communicator& comm, const std::vector<HeldOut>& held_out,
                    std::int32_t eos, std::int64_t step, Activations& activations, DeviceBatch& batch,
                    std::int64_t max_tokens) {
  const Span span(ctx, "phase.evaluation");
  const ModelConfig& config = model.config();
  const auto length = static_cast<std::size_t>(config.sequence_length);
  ModelConfig pool_config = config;
  pool_config.pool = PoolMode::Fixed;
  pool_config.pool_size = config.eval_pool;
  const auto sizes = make_pool_sizes(pool_config, 0);
  const PoolPlan pools{config.eval_pool > 0 ? sizes.get() : nullptr, nullptr, step};

  Evaluation result{step, config.num_experts, {}};
  std::vector<double> sums;  // nats a domain
  for (const HeldOut& source : held_out) {
    DomainLoss d{source.label, static_cast<std::int64_t>(source.documents.size()), source.bytes, 0, 0};
    std::vector<Window> windows;
    for (std::size_t i = 0; i < source.documents.size(); ++i) {
      d.tokens += static_cast<std::int64_t>(source.documents[i].size()) + 1;
      if (static_cast<int>(i) % comm.size() == comm.rank()) append_windows(windows, source.documents[i], eos, length);
    }
    double nats = 0;
    std::size_t next = 0;
    while (next < windows.size()) {
      std::vector<SequenceInput> sequences;
      std::int64_t tokens = 0;
      for (; next < windows.size(); ++next) {
        const auto size = static_cast<std::int64_t>(windows[next].tokens.size());
        if (tokens + size > max_tokens) break;
        tokens += size;
        sequences.push_back({windows[next].tokens, windows[next].labels, static_cast<std::int64_t>(next), 0});
      }
      const MicroBatch micro = make_micro_batch(config, eos, sequences);
      batch.upload(ctx, micro);
      model.forward(ctx, activations, batch, micro.documents, pools, nullptr);
      nats += model.loss(ctx, activations, batch, false, 1.0, 0.0, {}).ce;
    }
    sums.push_back(nats);
    result.domains.push_back(d);
  }
  const Tensor total(ctx.device, DType::F64, {static_cast<std::int64_t>(sums.size())});
  ops::copy_from_host(ctx, total, sums.data());
  comm.all_reduce(total);
  const auto nats = ops::to_host<double>(ctx, total);
  for (std::size_t i = 0; i < nats.size(); ++i) result.domains[i].nats = nats[i];
  return result;
}

}  // namespace emox
