#include "launch/run/balance_group.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstdint>
#include <functional>
#include <map>
#include <nlohmann/json.hpp>

#include "runtime/core/error.h"
#include "runtime/core/idx.h"

namespace emox {
namespace {

bool has_balance_loss(const ModelConfig& m) { return m.is_moe() && m.balance == BalanceMode::Aux; }

const char* scope_name(const Recipe& r) { return kBalanceScopeNames[idx(r.model.balance_scope)]; }

bool names(std::string run_change, const std::string& key) {
  std::erase(run_change, ' ');
  return ("," + run_change + ",").find("," + key + ",") != std::string::npos;
}

/// A number of sequences that a rank may compute at a time to have these groups; 0: none.
std::int64_t micro_batch_for(Recipe recipe, int ranks, const std::string& groups) {
  const std::int64_t most = (recipe.train.batch_sequences + ranks - 1) / ranks;
  constexpr std::int64_t kTries = 4096;
  for (std::int64_t micro = 1; micro <= std::min(most, kTries); ++micro) {
    recipe.train.micro_batch_sequences = micro;
    if (balance_groups(recipe, ranks) == groups) return micro;
  }
  return 0;
}

}  // namespace

std::string balance_groups(const Recipe& recipe, int ranks) {
  const ModelConfig& m = recipe.model;
  if (!has_balance_loss(m)) return "";
  const std::int64_t batch = recipe.train.batch_sequences, most = (batch + ranks - 1) / ranks;
  const std::int64_t micro = std::min(recipe.train.micro_batch_sequences, most), passes = (most + micro - 1) / micro;
  std::map<std::int64_t, std::int64_t, std::greater<>> number_of;  // by size
  if (m.balance_scope == BalanceScope::Step) {
    number_of[batch] = 1;
  } else {
    for (std::int64_t pass = 0; pass < passes; ++pass) {
      std::int64_t together = 0;
      for (std::int64_t r = 0; r < ranks; ++r) {
        const std::int64_t share = batch * (r + 1) / ranks - batch * r / ranks;
        const std::int64_t here = std::clamp<std::int64_t>(share - pass * micro, 0, micro);
        if (m.balance_scope == BalanceScope::Local && here > 0) ++number_of[here];
        together += here;
      }
      if (m.balance_scope == BalanceScope::MicroBatch) ++number_of[together];
    }
  }
  std::string text;
  for (const auto& [size, number] : number_of)
    text += fmt::format("{}{} of {}", text.empty() ? "" : " and ", number, size);
  return text;
}

std::string describe_balance_groups(const Recipe& recipe, int ranks) {
  if (!has_balance_loss(recipe.model) || recipe.model.balance_scope == BalanceScope::Step) return "";
  return fmt::format(
      "moe.balance_scope = {}: the balance loss sees the {} sequences of a step in groups, {}. Other ranks or another "
      "train.micro_batch_sequences would be another objective",
      scope_name(recipe), recipe.train.batch_sequences, balance_groups(recipe, ranks));
}

std::optional<BalanceGroupChange> check_balance_groups(const Manifest& found, const Recipe& before, const Recipe& now,
                                                       int ranks) {
  if (!has_balance_loss(before.model) || !has_balance_loss(now.model)) return std::nullopt;
  // Another scope or batch is a change of its own, of keys that a resume must name.
  if (before.model.balance_scope != now.model.balance_scope ||
      before.train.batch_sequences != now.train.batch_sequences || !found.mesh.is_object())
    return std::nullopt;
  const int ranks_before = found.mesh.at("expert_parallel").get<int>() * found.mesh.at("data_parallel").get<int>();
  BalanceGroupChange change{balance_groups(before, ranks_before), balance_groups(now, ranks)};
  if (change.before == change.now) return std::nullopt;
  if (names(now.run.change, "moe.balance_scope") || names(now.run.change, "train.micro_batch_sequences")) return change;
  const std::int64_t fits = micro_batch_for(now, ranks, change.before);
  fail<UsageError>(
      "moe.balance_scope = {}: the balance loss of the run in {} saw the sequences of a step in groups, {} (on {} "
      "rank(s), train.micro_batch_sequences = {}); on {} rank(s) with {} it would be {}, another objective. Use {}, or "
      "let this resume change it with --run.change=moe.balance_scope",
      scope_name(now), now.run.dir, change.before, ranks_before, before.train.micro_batch_sequences, ranks,
      now.train.micro_batch_sequences, change.now,
      fits > 0 ? fmt::format("--train.micro_batch_sequences={} --run.change=train.micro_batch_sequences on these ranks",
                             fits)
               : fmt::format("{} rank(s)", ranks_before));
}

}  // namespace emox
