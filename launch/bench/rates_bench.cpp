#include "launch/bench/rates_bench.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <chrono>
#include <cmath>
#include <ctime>
#include <nlohmann/json.hpp>
#include <string_view>

#include "launch/bench/link_bench.h"
#include "launch/bench/median.h"
#include "launch/bench/plain_file.h"
#include "launch/bench/step_bench.h"
#include "launch/plan/step_model.h"
#include "parallel/comm/together.h"
#include "runtime/core/idx.h"

namespace emox {
namespace {

/// A sequence's: text is long beside the sequences of such models, and short documents cost attention more than their
/// operations say.
constexpr double kDocuments = 1;

/// A model of `width` whose parts all take part of its step.
Recipe model_of_width(std::int64_t width, int ranks, bool gpu) {
  Recipe r;
  ModelConfig& m = r.model;
  m.d_model = width;
  m.layers = gpu ? 2 : 4;
  m.heads = gpu ? std::max<std::int64_t>(width / 128, 1) : std::max<std::int64_t>(width / 64, 4);
  m.vocab_size = gpu ? 32768 : 1024;
  m.num_experts = 32, m.top_k = 4, m.shared_experts = 1;
  m.expert_ff = gpu ? width / 2 : width;
  m.sequence_length = gpu ? 4096 : 512;
  m.intra_document_attention = true;
  m.pool = PoolMode::Uniform, m.pool_min = 4, m.pool_max = 32;
  m.balance_scope = BalanceScope::MicroBatch;
  r.run.name = fmt::format("width-{}", width);
  r.train.steps = 1000;
  // Enough tokens for a step of a tenth of a second and more.
  const std::int64_t sequences = gpu ? 4 : std::clamp<std::int64_t>(1024 / width, 4, 16);
  r.train.batch_sequences = sequences * ranks;
  r.train.micro_batch_sequences = sequences;
  r.data.source = {"synthetic:1:synthetic"};
  return r;
}

double of_root(Communicator& comm, double x) {
  return std::bit_cast<double>(value_of_root(comm, std::bit_cast<std::int64_t>(x)));
}

/// Seconds of a step by kind.
struct OpSeconds {
  double dense = 0, experts = 0, head = 0, attention = 0, rows = 0, optimizer = 0;
  double all() const { return dense + experts + head + attention + rows + optimizer; }
};

OpSeconds seconds_of(const nlohmann::ordered_json& ops) {
  OpSeconds s;
  for (const auto& op : ops) {
    const auto name = op["op"].get<std::string>();
    const std::string_view n = name;
    double& kind = n.starts_with("matmul") || n.starts_with("logits")     ? s.dense
                   : n.starts_with("experts") || n.starts_with("grouped") ? s.experts
                   : n.starts_with("lm_head")                             ? s.head
                   : n.starts_with("attention")                           ? s.attention
                   : n == "adamw" || n == "sum_of_squares" || n == "zero" ? s.optimizer
                                                                          : s.rows;
    kind += op["seconds"].get<double>();
  }
  return s;
}

struct Measured {
  OpRates rates;
  double gemm = 0, copy = 0, spread = 1;
  double base = 0;  ///< bytes of the process beside its tensors
};

Measured measure_width(Session& session, std::int64_t width, int steps) {
  const int ranks = session.comm().size();
  const bool gpu = session.choice().on_gpu();
  const Recipe recipe = model_of_width(width, ranks, gpu);
  const auto r = bench_step(session, recipe, {.steps = steps, .warmup = 2, .documents = kDocuments}, true);
  const OpSeconds s = seconds_of(r["ops"]);
  StepShape shape;
  shape.ranks = ranks;
  shape.sequences = recipe.train.micro_batch_sequences;
  shape.document_tokens = static_cast<double>(recipe.model.sequence_length) / kDocuments;
  Measured m;
  m.gemm = r["gemm_gflops"].get<double>() * 1e9, m.copy = r["copy_gb_s"].get<double>() * 1e9;
  m.spread = r["step_max_s"].get<double>() / r["step_min_s"].get<double>();
  m.base = std::max(0.0, r["peak_rss_bytes"].get<double>() - r["tensors_peak_bytes"].get<double>());
  const auto parameters = r["parameters"].get<std::int64_t>();
  shape.local_elements = parameters;
  shape.owned_elements = parameters / ranks;
  const StepWork w = step_work(recipe, shape, session.ctx().activations);
  const auto fraction = [](double work, double rate, double seconds) {
    return seconds > 0 ? std::clamp(work / rate / seconds, 1e-3, 10.0) : 1.0;
  };
  m.rates = {.width = static_cast<double>(width),
             .dense = fraction(w.dense, m.gemm, s.dense),
             .experts = fraction(w.experts, m.gemm, s.experts),
             .head = fraction(w.head, m.gemm, s.head),
             .attention = fraction(w.attention, m.gemm, s.attention),
             .rows = fraction(w.rows, m.copy, s.rows),
             .optimizer = fraction(w.optimizer, m.copy, s.optimizer)};
  const double rest = r["step_s"].get<double>() - s.all() - r["comm_s"].get<double>();
  m.rates.layer_s = std::max(0.0, rest) / static_cast<double>(recipe.model.layers) / 2;
  for (double* x : {&m.rates.dense, &m.rates.experts, &m.rates.head, &m.rates.attention, &m.rates.rows,
                    &m.rates.optimizer, &m.rates.layer_s, &m.gemm, &m.copy, &m.spread, &m.base})
    *x = of_root(session.comm(), *x);  // every rank would say a little else
  return m;
}

std::string today() {
  const std::time_t now = std::time(nullptr);
  std::tm t = {};
  gmtime_r(&now, &t);
  return fmt::format("{:04}-{:02}-{:02}", t.tm_year + 1900, t.tm_mon + 1, t.tm_mday);
}

void measure_files(Session& session, const RatesBenchOptions& options, Hardware& h, const std::string& source) {
  constexpr std::int64_t kBytes = std::int64_t{256} << 20;
  double write_s = 0, read_s = 0;
  on_root(session.comm(), [&] {
    const auto file = options.directory / ".emox-bench-rates";
    const Tensor memory(Device{}, DType::F32, {kBytes / 4});
    write_s = write_plain_file(file, memory);
    drop_from_cache(file);
    read_s = read_plain_file(file, memory);
    remove_and_settle(file);
  });
  h.write = {static_cast<double>(kBytes) / of_root(session.comm(), write_s), "measured", source};
  h.read = {static_cast<double>(kBytes) / of_root(session.comm(), read_s), "measured", source};
}

}  // namespace

Hardware bench_rates(Session& session, const RatesBenchOptions& options) {
  Communicator& comm = session.comm();
  const bool gpu = session.choice().on_gpu();
  const std::string source = fmt::format("emox bench rates, {}", today());
  Hardware h;
  h.name = device_name(session.ctx());
  h.gpu = gpu;
  h.precision = session.ctx().activations;
  h.threads = session.ctx().threads;
  const auto& nodes = comm.nodes();
  h.ranks_per_node = static_cast<int>(std::count(nodes.begin(), nodes.end(), nodes.front()));
  std::vector<std::int64_t> widths = options.widths;
  if (widths.empty())
    widths = gpu ? std::vector<std::int64_t>{512, 1024, 2048} : std::vector<std::int64_t>{64, 128, 256, 512};
  std::vector<double> gemm, copy;
  double base = 0;
  for (const std::int64_t width : widths) {
    const Measured m = measure_width(session, width, options.steps);
    h.ops.push_back(m.rates);
    gemm.push_back(m.gemm), copy.push_back(m.copy);
    base = m.base;  // of the largest model: beside that of a small one, the products that are timed at the start count
    if (m.spread > 1.25)
      h.note += fmt::format("{}not quiet: the slowest step of width {} took {:.2f} times the fastest",
                            h.note.empty() ? "" : "; ", width, m.spread);
  }
  h.ops_tag = "measured", h.ops_source = source;
  h.gemm = {median(gemm), "measured", source};
  h.peak = h.gemm;
  h.copy = {median(copy), "measured", source};
  if (gpu) {
    h.memory = {static_cast<double>(cuda::accelerator()->properties(session.ctx().device.index).memory), "measured",
                source};
  } else {
    h.memory = {static_cast<double>(sysconf(_SC_PHYS_PAGES)) * static_cast<double>(sysconf(_SC_PAGESIZE)), "measured",
                source};
    h.base = {base, "measured", source};
  }
  const auto rates = link_rates(session);
  const auto link = [&](const char* peers, Link otherwise) {
    if (!rates.contains(peers)) return otherwise;
    return Link{{rates[peers]["gb_s"].get<double>() * 1e9, "measured", source},
                {rates[peers]["small_us"].get<double>() / 1e6, "measured", source}};
  };
  h.same_node = link("same_node", {{gpu ? 300e9 : h.copy.value / 4, "assumed", "one rank a node was started"},
                                   {20e-6, "assumed", ""}});
  h.other_nodes = link("other_nodes", {{gpu ? 48e9 : 1.2e9, "assumed", "one node took part"}, {40e-6, "assumed", ""}});
  measure_files(session, options, h, source);
  return h;
}

}  // namespace emox
