// The optimizer, sharded: the same weights and moments as on one rank, bit for bit, each element kept once.
#include "model/optim/optimizer.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <utility>

#include "launch/run/sharding.h"
#include "model/layers/attention.h"
#include "model/layers/feed_forward.h"
#include "model/moe/moe_layer.h"
#include "model/transformer/language_model.h"
#include "parallel/comm/thread_world.h"
#include "runtime/core/idx.h"
#include "tests/support/ranks.h"
#include "tests/support/support.h"

namespace emox {
namespace {

constexpr int kTimeout = 120;
constexpr AdamWConfig kAdamW{0.9, 0.95, 1e-8, 0.1, 1.0};
constexpr double kLearningRate = 3e-3;

struct Mesh {
  int ranks;
  std::int64_t expert_parallel;
};

std::ostream& operator<<(std::ostream& out, const Mesh& m) {
  return out << m.ranks << " ranks, experts over " << m.expert_parallel;
}

// `routed` 0: dense.
ModelConfig model_of(std::int64_t routed) {
  ModelConfig m;
  m.d_model = 24, m.layers = 2, m.heads = 2, m.vocab_size = 101, m.sequence_length = 16;
  m.dense_ff = 20, m.expert_ff = 12;
  m.num_experts = routed > 0 ? routed + 1 : 0, m.top_k = 2, m.shared_experts = 1;
  return m;
}

using Values = std::map<std::pair<std::string, std::string>, std::vector<float>>;  // by name and role

struct Piece {
  std::string name, role;
  Shape shape;
  std::int64_t begin, end;
  std::vector<float> values;
};

struct RankResult {
  std::vector<Piece> pieces;                          ///< owned, after the steps
  std::map<std::string, std::vector<float>> weights;  ///< of all parameters here
  std::size_t state_bytes = 0;
  std::vector<double> square_sums;   ///< a step each
  std::int64_t flat[2] = {};         ///< elements of the flat buffers, padding included
  std::int64_t expert_elements = 0;  ///< of the experts here, padding not included
  std::int64_t elements = 0;         ///< of the whole model
};

// A gradient's total over ranks: multiples of 2^-10 up to 1 in size, so that sums are exact in any order.
std::int64_t total_of(std::uint32_t ordinal, std::int64_t i, std::int64_t step) {
  const std::int64_t x = (std::int64_t{ordinal} * 7919 + i * 104729 + step * 1299709) % 2039;
  return x - 1019;
}

// Part `r` of `n` of the total: parts of the others, and what is missing.
float part_of(std::int64_t total, std::int64_t i, int r, int n) {
  const auto part = [&](int k) { return (i * (k + 3) + 17 * k) % 1021 - 510; };
  std::int64_t mine = part(r);
  if (r == n - 1) {
    mine = total;
    for (int k = 0; k < n - 1; ++k) mine -= part(k);
  }
  return static_cast<float>(mine) / 1024.0F;
}

void set_gradients(const ParameterStore& store, ProcessMesh& mesh, std::int64_t step) {
  for (const ParameterGroup g : kParameterGroups) {
    const TensorView flat = store.grad(store.flat(g));
    std::fill_n(flat.data<float>(), flat.numel(), 0.0F);
  }
  for (const NamedParameter& p : store.named()) {
    const Communicator& sharers = p.slot.group == ParameterGroup::Dense ? mesh.world() : mesh.replicas();
    auto* g = store.grad(p.slot).data<float>();
    for (std::int64_t i = 0; i < p.slot.shape.numel(); ++i)
      g[i] = part_of(total_of(p.ordinal, i, step), i, sharers.rank(), sharers.size());
  }
}

std::vector<Piece> copied(const std::vector<OwnedPart>& pieces) {
  std::vector<Piece> out;
  for (const OwnedPart& p : pieces) {
    EXPECT_EQ(p.view.numel(), p.end - p.begin);
    out.push_back({p.name, p.role, p.shape, p.begin, p.end, test::values_of<float>(p.view)});
  }
  return out;
}

RankResult run_rank(const ModelConfig& config, const Mesh& m, Communicator& comm, std::int64_t steps) {
  Context ctx;
  ParallelConfig parallel;
  parallel.expert_parallel = m.expert_parallel, parallel.placement = PlacementKind::Random;
  Sharding sharding(comm, config, parallel);
  LanguageModel model(config, ctx, true, sharding.experts());
  model.initialize(ctx, 5);
  const ParameterStore& store = model.parameters();
  Optimizer optimizer(ctx, store, sharding.mesh());
  RankResult r;
  for (std::int64_t step = 1; step <= steps; ++step) {
    set_gradients(store, sharding.mesh(), step);
    optimizer.reduce_gradients(ctx);
    const Tensor squares({}, DType::F64, {1});
    optimizer.add_owned_squares(ctx, squares);
    r.square_sums.push_back(test::values_of<double>(squares)[0]);
    optimizer.update(ctx, kAdamW, kLearningRate, 0.37, step);
  }
  r.pieces = copied(optimizer.owned_parts());
  for (const NamedParameter& p : store.named()) r.weights[p.name] = test::values_of<float>(store.weight(p.slot));
  r.state_bytes = optimizer.state_bytes();
  for (const ParameterGroup g : kParameterGroups) r.flat[idx(g)] = store.flat_size(g);
  for (const auto& layer : store.expert_layers())
    for (const ParameterSlot& s : layer) r.expert_elements += s.shape.numel();
  r.elements = store.element_count();
  return r;
}

std::vector<RankResult> run(const ModelConfig& config, const Mesh& m, std::int64_t steps, int ranks_per_node = 0) {
  std::vector<RankResult> results(idx(m.ranks));
  ThreadWorld world(m.ranks, {.ranks_per_node = ranks_per_node});
  test::run_ranks(
      world, [&](Communicator& comm) { results[idx(comm.rank())] = run_rank(config, m, comm, steps); }, kTimeout);
  return results;
}

// Pieces of all ranks as whole arrays. Every element must be there once.
Values joined(const std::vector<RankResult>& ranks) {
  std::map<std::pair<std::string, std::string>, std::vector<const Piece*>> by_array;
  for (const RankResult& r : ranks)
    for (const Piece& p : r.pieces) by_array[{p.name, p.role}].push_back(&p);
  Values values;
  for (auto& [key, pieces] : by_array) {
    std::sort(pieces.begin(), pieces.end(), [](const auto* a, const auto* b) { return a->begin < b->begin; });
    std::vector<float>& all = values[key];
    for (const Piece* p : pieces) {
      EXPECT_EQ(p->begin, static_cast<std::int64_t>(all.size())) << key.first << " " << key.second;
      all.insert(all.end(), p->values.begin(), p->values.end());
    }
    EXPECT_EQ(static_cast<std::int64_t>(all.size()), pieces.front()->shape.numel()) << key.first << " " << key.second;
  }
  return values;
}

const Mesh kMeshes[] = {{2, 1}, {2, 2}, {3, 1}, {3, 3}, {4, 1}, {4, 2}, {4, 4}, {6, 2}, {6, 1}, {5, 5}};

bool fits(const ModelConfig& c, const Mesh& m) {
  return m.expert_parallel == 1 || (c.is_moe() && c.routed_experts() >= m.expert_parallel);
}

class ShardedOptimizer : public testing::TestWithParam<std::int64_t> {};

TEST_P(ShardedOptimizer, UpdatesAsOneRankDoes) {
  const ModelConfig config = model_of(GetParam());
  constexpr std::int64_t kSteps = 3;
  const std::vector<RankResult> one = run(config, {1, 1}, kSteps);
  const Values want = joined(one);
  ASSERT_EQ(want.size(), 3 * one[0].weights.size());
  for (const char* role : {"weight", "exp_avg", "exp_avg_sq"})
    EXPECT_NE(want.at({"lm_head.weight", role}), std::vector<float>(want.at({"lm_head.weight", role}).size(), 0.0F));
  for (const Mesh& m : kMeshes) {
    if (!fits(config, m)) continue;
    SCOPED_TRACE(testing::Message() << m);
    const std::vector<RankResult> many = run(config, m, kSteps);
    const Values got = joined(many);
    ASSERT_EQ(got.size(), want.size());
    for (const auto& [key, values] : want) EXPECT_EQ(got.at(key), values) << key.first << " " << key.second;
    std::size_t held = 0;
    for (const RankResult& r : many)
      for (const auto& [name, values] : r.weights) {
        EXPECT_EQ(values, one[0].weights.at(name)) << name << " as a rank has it";
        ++held;
      }
    EXPECT_GE(held, one[0].weights.size());
    for (std::size_t s = 0; s < kSteps; ++s) {
      double sum = 0;
      for (const RankResult& r : many) sum += r.square_sums[s];
      EXPECT_NEAR(sum, one[0].square_sums[s], 1e-12 * one[0].square_sums[s]) << "the norm counts an element twice";
    }
  }
}

// The layers of a model with weights of `type`; bf16 ones on the CPU are stored only, which is all that the optimizer
// does with them.
RankResult run_layers(const ModelConfig& config, const Mesh& m, Communicator& comm, DType type) {
  Context ctx;
  ParallelConfig parallel;
  parallel.expert_parallel = m.expert_parallel, parallel.placement = PlacementKind::Random;
  Sharding sharding(comm, config, parallel);
  ParameterStore store;
  store.name("embedding", store.reserve({config.vocab_size, config.d_model}, false));
  for (std::int64_t l = 0; l < config.layers; ++l) {
    const Attention attention(config, l, store);
    if (config.is_moe())
      const MoeLayer experts(config, l, store, *sharding.experts());
    else
      const FeedForward dense(config.d_model, config.dense_ff, fmt::format("{}.", l), store);
  }
  store.allocate(ctx.device, true, type);
  Optimizer optimizer(ctx, store, sharding.mesh());
  optimizer.fill_weights(ctx, [&](const NamedParameter& p, TensorView part, std::int64_t first) {
    LanguageModel::draw(ctx, 5, p, part, first);
  });
  for (std::int64_t step = 1; step <= 3; ++step) {
    set_gradients(store, sharding.mesh(), step);
    optimizer.reduce_gradients(ctx);
    optimizer.update(ctx, kAdamW, kLearningRate, 0.37, step);
  }
  RankResult r;
  r.pieces = copied(optimizer.owned_parts());
  for (const NamedParameter& p : store.named()) {
    std::vector<float>& values = r.weights[p.name];
    if (type == DType::F32)
      for (const float w : test::values_of<float>(store.weight(p.slot))) values.push_back(rounded_to_bf16(w));
    else
      for (const Bf16 w : test::values_of<Bf16>(store.weight(p.slot))) values.push_back(static_cast<float>(w));
  }
  r.state_bytes = optimizer.state_bytes();
  return r;
}

// Weights of two bytes: the f32 masters take the same steps as f32 weights do, and every rank holds them rounded.
TEST_P(ShardedOptimizer, KeepsMastersOfRoundedWeights) {
  const ModelConfig config = model_of(GetParam());
  const auto run_all = [&](const Mesh& m, DType type) {
    std::vector<RankResult> ranks(idx(m.ranks));
    test::run_ranks(
        m.ranks, [&](Communicator& comm) { ranks[idx(comm.rank())] = run_layers(config, m, comm, type); }, kTimeout);
    return ranks;
  };
  const std::vector<RankResult> f32 = run_all({1, 1}, DType::F32);
  for (const Mesh& m : {Mesh{1, 1}, Mesh{2, 1}, Mesh{4, 2}}) {
    if (!fits(config, m)) continue;
    SCOPED_TRACE(testing::Message() << m);
    const std::vector<RankResult> rounded = run_all(m, DType::BF16);
    EXPECT_TRUE(joined(rounded) == joined(f32));
    for (const RankResult& r : rounded)
      for (const auto& [name, values] : r.weights) EXPECT_EQ(values, f32[0].weights.at(name)) << name;
    if (m.ranks == 1) {
      EXPECT_EQ(2 * rounded[0].state_bytes, 3 * f32[0].state_bytes);
    }
  }
}

TEST_P(ShardedOptimizer, KeepsEveryMomentOnce) {
  const ModelConfig config = model_of(GetParam());
  for (const Mesh& m : kMeshes) {
    if (!fits(config, m)) continue;
    SCOPED_TRACE(testing::Message() << m);
    const std::vector<RankResult> ranks = run(config, m, 0);
    // Two moments of four bytes; the replicas of a column share its experts.
    std::int64_t sum = 0, most = 0, expert_elements = 0;
    for (const RankResult& r : ranks) {
      sum += static_cast<std::int64_t>(r.state_bytes);
      most = std::max(most, static_cast<std::int64_t>(r.state_bytes));
      expert_elements += r.expert_elements;
    }
    const std::int64_t replicas = m.ranks / m.expert_parallel, dense = ranks[0].flat[0], elements = ranks[0].elements;
    ASSERT_EQ(expert_elements % replicas, 0);
    EXPECT_EQ(sum, 8 * (dense + expert_elements / replicas));
    const auto slots = static_cast<std::int64_t>(ranks[0].weights.size());
    EXPECT_GE(sum, 8 * elements);
    EXPECT_LE(sum, 8 * (elements + 127 * slots));
    // The fullest rank: its share, and where experts do not divide, one expert more than others at most, of each layer
    // where expert-parallel ranks have unequal numbers.
    const std::int64_t one = config.is_moe() ? 3 * config.d_model * config.expert_ff : 0;
    const bool alike = config.is_moe() && config.routed_experts() % m.expert_parallel == 0;
    const std::int64_t experts = alike ? config.routed_experts() / m.expert_parallel * config.layers : 0;
    const std::int64_t uneven = alike ? (experts % replicas == 0 ? 0 : one) : config.layers * one;
    EXPECT_LE(most, sum / m.ranks + 8 * (uneven + 2 * 16));
  }
}

std::string name_of(const testing::TestParamInfo<std::int64_t>& info) {
  return info.param == 0 ? "dense" : std::to_string(info.param) + "_experts";
}
// 12 go evenly on all meshes but one; 5 do not, and are fewer than 6 replicas; 2 are fewer than most.
INSTANTIATE_TEST_SUITE_P(Models, ShardedOptimizer, testing::Values(0, 2, 5, 12), name_of);

// Parameters of many pieces of a sum, on nodes that are added up first: a rank has one stretch of the dense ones.
TEST(Optimizer, ManyPiecesAndNodes) {
  ModelConfig config = model_of(0);
  config.layers = 1, config.vocab_size = 30011;
  const std::vector<RankResult> one = run(config, {1, 1}, 2), many = run(config, {4, 1}, 2, 2);
  ASSERT_GT(one[0].flat[0] / 4 * 4, 2 * static_cast<std::int64_t>(kSharePiece));
  for (const RankResult& r : many) {
    const auto cut = std::count_if(r.pieces.begin(), r.pieces.end(), [](const Piece& p) {
      return p.role == "weight" && (p.begin > 0 || p.end < p.shape.numel());
    });
    EXPECT_LE(cut, 2) << "only where its stretch begins and ends";
  }
  EXPECT_TRUE(joined(many) == joined(one));
  for (const RankResult& r : many) EXPECT_TRUE(r.weights == one[0].weights);
}

}  // namespace
}  // namespace emox
