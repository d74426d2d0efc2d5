#include "tests/support/training.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <fstream>
#include <memory>
#include <mutex>
#include <nlohmann/json.hpp>
#include <optional>
#include <stdexcept>

#include "data/format/npy.h"
#include "data/format/token_file.h"
#include "data/loader/loader.h"
#include "data/tokenize/tokenizer.h"
#include "launch/config/recipe_file.h"
#include "launch/run/run_start.h"
#include "launch/run/sharding.h"
#include "model/optim/schedule.h"
#include "parallel/checkpoint/manifest.h"
#include "runtime/core/idx.h"
#include "runtime/files/files.h"
#include "runtime/ops/basic.h"
#include "tests/support/checkpoints.h"
#include "tests/support/ranks.h"
#include "tests/support/support.h"

namespace emox::test {
namespace {

namespace fs = std::filesystem;

// Two lines of a paragraph are a document: sequences of 64 bytes then hold up to a handful of them.
std::vector<std::string> documents_of(const std::string& text) {
  std::vector<std::string> documents;
  std::string open;
  int lines = 0;
  const auto close = [&] {
    if (!open.empty()) documents.push_back(open);
    open.clear();
    lines = 0;
  };
  std::istringstream in(text);
  for (std::string line; std::getline(in, line);) {
    const auto first = line.find_first_not_of(" \t");
    if (first == std::string::npos)
      close();
    else
      open += line.substr(first) + "\n";
    if (++lines == 2) close();
  }
  close();
  return documents;
}

void write_documents(const fs::path& file, const std::vector<std::string>& documents) {
  std::vector<std::uint16_t> tokens;
  std::vector<std::int64_t> offsets{0};
  for (const std::string& d : documents) {
    for (const char c : d) tokens.push_back(static_cast<unsigned char>(c));
    tokens.push_back(static_cast<std::uint16_t>(kByteEos));
    offsets.push_back(static_cast<std::int64_t>(tokens.size()));
  }
  write_npy(file, std::span<const std::uint16_t>(tokens));
  write_npy(document_index_path(file), std::span<const std::int64_t>(offsets));
}

// Remembers what it was asked.
class RecordedDraws final : public PoolSizes {
 public:
  explicit RecordedDraws(std::unique_ptr<PoolSizes> inner) : inner_(std::move(inner)) {}
  std::int64_t size(std::int64_t step, std::int64_t layer, const PoolDocument& d) const override {
    const std::int64_t size = inner_->size(step, layer, d);
    draws[{step, layer, d.sequence, d.document}] = size;
    return size;
  }
  bool frees_tokens() const override { return inner_->frees_tokens(); }
  // Beside the sizes, under a number that no document has.
  bool is_free(std::int64_t step, std::int64_t layer, const PoolDocument& d, std::int64_t position) const override {
    const bool is_free = inner_->is_free(step, layer, d, position);
    draws[{step, layer, d.sequence, static_cast<std::int32_t>(-1 - position)}] = is_free ? 1 : 0;
    return is_free;
  }
  mutable Draws draws;

 private:
  std::unique_ptr<PoolSizes> inner_;
};

double softmax_of(std::vector<double>& z) {
  const double top = *std::max_element(z.begin(), z.end());
  double sum = 0;
  for (const double v : z) sum += std::exp(v - top);
  for (double& v : z) v = std::exp(v - top) / sum;
  return top + std::log(sum);
}

/// Copies the routing of this rank's only micro-batch to its place in the global batch, and works out, in double, how
/// close each discrete choice was.
void record_routing(Routing& out, const ModelConfig& c, const LanguageModel& model, const Activations& a,
                    const MicroBatch& batch, std::int64_t first_token, std::int64_t all_tokens, const PoolSizes& sizes,
                    std::int64_t step) {
  const std::int64_t n = c.routed_experts(), width = c.num_experts, k = c.routed_top_k(), d = c.d_model;
  const float* bias = model.selection_bias().null() ? nullptr : model.selection_bias().data<float>();
  for (std::int64_t l = 0; l < c.layers; ++l) {
    const Activations::Block& block = a.blocks[idx(l)];
    const float* x = block.normed.data<float>();
    const float* p = block.moe.route.p.data<float>();
    const std::int32_t* ids = block.moe.route.ids.data<std::int32_t>();
    const NamedParameter* gate = nullptr;
    for (const NamedParameter& q : model.parameters().named())
      if (q.name == fmt::format("model.layers.{}.mlp.gate.weight", l)) gate = &q;
    const float* w = model.parameters().weight(gate->slot).data<float>();
    for (std::size_t doc = 0; doc + 1 < batch.pool_segments.size(); ++doc) {
      std::vector<double> scores(idx(n), 0.0);
      for (std::int64_t t = batch.pool_segments[doc]; t < batch.pool_segments[doc + 1]; ++t) {
        std::vector<double> z(idx(n), 0.0);
        for (std::int64_t i = 0; i < n; ++i)
          for (std::int64_t j = 0; j < d; ++j) z[idx(i)] += double{x[t * d + j]} * double{w[i * d + j]};
        const std::int64_t at = l * all_tokens + first_token + t;
        // What the picks are the largest of: logits, or p + bias (order inside the pool is the same without a bias).
        std::vector<double> inside;
        for (std::int64_t i = 0; i < n; ++i)
          if (p[t * width + i] > 0)
            inside.push_back(bias == nullptr ? z[idx(i)] : double{p[t * width + i]} + double{bias[l * n + i]});
        std::sort(inside.rbegin(), inside.rend());
        const auto last = idx(k - 1);
        out.choice_gap[idx(at)] = last + 1 < inside.size() ? inside[last] - inside[last + 1] : 1e9;
        softmax_of(z);
        for (std::int64_t i = 0; i < n; ++i) scores[idx(i)] += z[idx(i)];
        std::copy(p + t * width, p + t * width + n, out.p.begin() + at * n);
        std::copy(ids + t * k, ids + (t + 1) * k, out.ids.begin() + at * k);
        std::sort(out.ids.begin() + at * k, out.ids.begin() + (at + 1) * k);  // which one is first changes nothing
      }
      std::sort(scores.rbegin(), scores.rend());
      const auto size = idx(std::min(n, sizes.size(step, l, batch.documents[doc])));
      const double gap = c.pool == PoolMode::Label || c.pool == PoolMode::Off || size >= scores.size()
                             ? 1e9
                             : (scores[size - 1] - scores[size]) / scores[size - 1];
      for (std::int64_t t = batch.pool_segments[doc]; t < batch.pool_segments[doc + 1]; ++t)
        out.pool_gap[idx(l * all_tokens + first_token + t)] = gap;
    }
  }
}

NamedValues values_by_name(const ParameterStore& store,
                           TensorView (ParameterStore::*which)(const ParameterSlot&) const) {
  NamedValues values;
  for (const NamedParameter& p : store.named()) values[p.name] = values_of<float>((store.*which)(p.slot));
  return values;
}

class RankOfRun {
 public:
  RankOfRun(const Recipe& recipe, const RunOptions& options, const Context& ctx, Communicator& comm, TrainingRun& run,
            std::mutex& mutex)
      : recipe_(recipe),
        options_(options),
        comm_(comm),
        run_(run),
        mutex_(mutex),
        ctx_(ctx),
        loader_(loader_config(recipe)),
        sharding_(comm, recipe.model, recipe.parallel),
        model_(recipe.model, ctx_, true, sharding_.experts()),
        draws_(make_pool_sizes(recipe.model, static_cast<std::uint64_t>(recipe.run.seed))),
        step_(ctx_, step_config(recipe), model_, sharding_.mesh(),
              {.pools = &draws_, .label_count = static_cast<std::int64_t>(recipe.data.source.size())}) {
    step_.initialize_weights(static_cast<std::uint64_t>(recipe.run.seed));
    if (options.start == nullptr) return;
    step_.optimizer().fill_weights(ctx_, [&](const NamedParameter& p, TensorView part, std::int64_t first) {
      ops::copy_from_host(ctx_, part, options.start->at(p.name).data() + first);
    });
  }

  void run() {
    const Schedule schedule = schedule_of(recipe_);
    const auto count = [&] {
      if (ctx_.queue != nullptr && comm_.rank() == 0) run_.queue.push_back(ctx_.queue->counters());
    };
    count();
    for (std::int64_t i = 0; i < options_.steps; ++i) {
      const std::int64_t step = options_.first_step + i;
      const StepMetrics m = one_step(step);
      count();
      if (comm_.rank() == 0) run_.steps[idx(i)] = m;
      if (i + 1 == options_.steps) {
        step_.optimizer().gather_gradients(ctx_);
        collect(run_.gradients, &ParameterStore::grad);
      }
      step_.update(step, schedule.learning_rate(step), m);
      count();
    }
    if (model_.parameters().weight_type() == DType::F32)
      collect(run_.weights, &ParameterStore::weight);
    else
      collect_masters();
    if (comm_.rank() == 0 && !model_.selection_bias().null()) run_.bias = values_of<float>(model_.selection_bias());
  }

  const Draws& draws() const { return draws_.draws; }

 private:
  StepMetrics one_step(std::int64_t step) {
    const std::int64_t begin = step_.share_begin(), length = recipe_.model.sequence_length;
    const auto sequences = loader_.read(step, begin, step_.share_end());
    const std::vector<SequenceInput> inputs = step_inputs(sequences, begin);
    const StepMetrics m = step_.compute_gradients(step, inputs);
    if (options_.record_routing)
      record_routing(run_.routing[idx(step - options_.first_step)], recipe_.model, model_, step_.activations(0),
                     make_micro_batch(recipe_.model, recipe_.data.eos_id(), inputs), begin * length,
                     recipe_.train.batch_sequences * length, draws_, step);
    return m;
  }

  // Ranks add what they hold; where several hold a tensor, it must be the same, bit for bit.
  void collect(NamedValues& into, TensorView (ParameterStore::*which)(const ParameterSlot&) const) {
    const NamedValues mine = values_by_name(model_.parameters(), which);
    const std::lock_guard lock(mutex_);
    for (const auto& [name, values] : mine)
      if (const auto [at, added] = into.emplace(name, values); !added && at->second != values)
        throw std::runtime_error("two ranks hold different values of " + name);
  }

  // Every rank has those that it owns.
  void collect_masters() {
    for (const OwnedPart& part : step_.optimizer().owned_parts())
      if (part.role == "weight") {
        const auto values = values_of<float>(part.view);
        const std::lock_guard lock(mutex_);
        std::vector<float>& all = run_.weights[part.name];
        all.resize(idx(part.shape.numel()));
        std::copy(values.begin(), values.end(), all.begin() + part.begin);
      }
  }

  const Recipe& recipe_;
  const RunOptions& options_;
  Communicator& comm_;
  TrainingRun& run_;
  std::mutex& mutex_;
  Context ctx_;
  Loader loader_;
  Sharding sharding_;
  LanguageModel model_;
  RecordedDraws draws_;
  TrainingStep step_;
};

}  // namespace

std::vector<std::string> make_text_sources(const fs::path& directory) {
  struct Source {
    const char* label;
    double weight;
    std::vector<std::string> files;
  };
  const fs::path licences = "/usr/share/common-licenses", own = fs::path(EMOX_SOURCE_DIR) / "LICENSE";
  const Source sources[] = {{"gnu", 2, {"GPL-2", "GPL-3"}},
                            {"mozilla", 1, {"MPL-1.1", "MPL-2.0"}},
                            {"manuals", 1.5, {"GFDL-1.3"}},
                            {"apache", 1, {}}};
  std::vector<std::string> lines;
  for (const Source& s : sources) {
    std::string text;
    for (const std::string& f : s.files) text += try_read_text(licences / f).text + "\n\n";
    if (text.size() < 10000) text = read_text(own);
    std::vector<std::string> parts[2];  // training, held out
    for (const std::string& d : documents_of(text)) {
      const std::size_t n = parts[0].size() + parts[1].size();
      parts[n % 8 == 5 ? 1 : 0].push_back(d);
    }
    const fs::path folder = directory / s.label;
    fs::create_directories(folder);
    write_documents(folder / "train.npy", parts[0]);
    write_documents(folder / "heldout.npy", parts[1]);
    // What tests of the two parts need is that they differ.
    write_documents(folder / "tune.npy",
                    {parts[1].begin() + static_cast<std::ptrdiff_t>(parts[1].size() / 2), parts[1].end()});
    lines.push_back(fmt::format("{}:{}:{}", s.label, s.weight, folder.string()));
  }
  return lines;
}

Recipe tiny_recipe(const std::vector<std::string>& sources) {
  Recipe r;
  r.run.name = "tiny", r.run.seed = 3;
  r.model.d_model = 32, r.model.layers = 2, r.model.heads = 2, r.model.vocab_size = 257, r.model.sequence_length = 64;
  r.model.dense_ff = 48;
  r.model.num_experts = 9, r.model.top_k = 3, r.model.shared_experts = 1, r.model.expert_ff = 16;
  r.model.pool = PoolMode::Uniform, r.model.pool_min = 2, r.model.pool_max = 9, r.model.pool_size = 4;
  r.train.steps = 50, r.train.batch_sequences = 12, r.train.micro_batch_sequences = 12;
  r.train.learning_rate = 1e-3, r.train.warmup_steps = 5;
  r.train.threads = 1;
  r.data.source = sources, r.data.eval_documents = 10;
  return r;
}

fs::path write_recipe(const fs::path& file, const Recipe& recipe) {
  std::ofstream(file) << to_ini(recipe);
  return file;
}

std::vector<nlohmann::json> read_metrics(const fs::path& run) {
  std::vector<nlohmann::json> lines;
  std::ifstream in(run / "metrics.jsonl");
  for (std::string line; std::getline(in, line);) {
    auto record = nlohmann::json::parse(line, nullptr, false);
    EXPECT_TRUE(record.is_object()) << line;
    for (const char* key : {"tokens_per_s", "step_s", "gemm_floor_fraction", "exposed_comm_s", "useful_s_min",
                            "useful_s_mean", "useful_s_max", "phase_s"})
      record.erase(key);
    lines.push_back(record);
  }
  return lines;
}

void expect_same_history(const fs::path& run, const fs::path& other, std::int64_t last) {
  const auto a = read_metrics(run), b = read_metrics(other);
  ASSERT_EQ(a.size(), idx(last));
  for (std::size_t i = 0; i < a.size(); ++i) {
    EXPECT_EQ(a[i].at("step"), i + 1);
    if (i < b.size()) {
      EXPECT_EQ(a[i], b[i]);
    }
  }
  EXPECT_EQ(b.size(), a.size());
  const std::string name = fmt::format("step-{:08}", last);
  const fs::path saved = run / "checkpoints" / name;
  EXPECT_TRUE(same_arrays(saved, other / "checkpoints" / name));
  EXPECT_GT(read_manifest(saved).tensors.size(), 100U);
}

TrainingRun train_on_threads(const Recipe& recipe, const RunOptions& options) {
  TrainingRun run;
  const ModelConfig& c = recipe.model;
  run.steps.resize(idx(options.steps));
  if (options.record_routing) {
    const auto places = idx(c.layers * recipe.train.batch_sequences * c.sequence_length);
    const Routing empty{std::vector<std::int32_t>(places * idx(c.routed_top_k())),
                        std::vector<float>(places * idx(c.routed_experts())), std::vector<double>(places),
                        std::vector<double>(places)};
    run.routing.assign(idx(options.steps), empty);
  }
  std::mutex mutex;
  if (options.context.queue != nullptr && !options.transport) {
    const auto alone = make_self_communicator();
    RankOfRun rank(recipe, options, options.context, *alone, run, mutex);
    rank.run();
    run.draws = rank.draws();
    return run;
  }
  ThreadWorld world(options.ranks, {.ranks_per_node = options.ranks_per_node});
  run_ranks(
      world,
      [&](Communicator& comm) {
        std::optional<DeviceRank> device;
        if (options.transport)
          device.emplace(comm, options.own_devices ? comm.rank() : 0, options.transport, options.context.activations);
        RankOfRun rank(recipe, options, device ? device->ctx() : options.context, device ? device->comm() : comm, run,
                       mutex);
        rank.run();
        const std::lock_guard lock(mutex);
        for (const auto& [key, size] : rank.draws())
          if (const auto [at, added] = run.draws.emplace(key, size); !added && at->second != size)
            throw std::runtime_error("two ranks drew different pool sizes for one document, or free tokens");
      },
      options.timeout_s);
  return run;
}

}  // namespace emox::test
