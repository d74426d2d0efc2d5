#include "launch/run/spikes.h"

#include <fmt/format.h>

#include <cmath>
#include <nlohmann/json.hpp>
#include <vector>

#include "runtime/core/error.h"

namespace emox {
namespace {

/// Why `value` is a spike after these; empty: it is none.
std::string spike(const char* what, const std::deque<double>& before, double value, double deviations) {
  const auto n = static_cast<double>(before.size());
  // From the first one on, so that equal values have no deviation.
  double mean = 0, squares = 0;
  for (const double x : before) mean += x - before.front();
  mean = before.front() + mean / n;
  for (const double x : before) squares += (x - mean) * (x - mean);
  const double deviation = std::sqrt(squares / (n - 1));
  if (value <= mean + deviations * deviation) return "";
  return fmt::format("{} {:.6g} is {:.3g} standard deviations above the mean of the last {} steps, {:.6g} +- {:.3g}",
                     what, value, (value - mean) / deviation, before.size(), mean, deviation);
}

void remember(std::deque<double>& window, double value, std::int64_t most) {
  window.push_back(value);
  while (static_cast<std::int64_t>(window.size()) > most) window.pop_front();
}

}  // namespace

std::string SpikeGuard::judge(double loss, double norm) {
  if (!std::isfinite(loss) || !std::isfinite(norm)) {
    if (++not_finite_ > kMostNotFinite) return "";
    ++skipped_;
    return fmt::format("loss {}, gradient norm {}, {} such step(s) in a row", loss, norm, not_finite_);
  }
  not_finite_ = 0;
  std::string why;
  if (2 * static_cast<std::int64_t>(losses_.size()) >= window_) {
    why = spike("loss", losses_, loss, deviations_);
    if (why.empty()) why = spike("gradient norm", norms_, norm, deviations_);
  }
  remember(losses_, loss, window_);
  remember(norms_, norm, window_);
  if (!why.empty()) ++skipped_;
  return why;
}

nlohmann::json SpikeGuard::state() const {
  return {{"losses", losses_}, {"norms", norms_}, {"not_finite", not_finite_}, {"skipped", skipped_}};
}

void SpikeGuard::restore(const nlohmann::json& state, const std::string& origin) {
  try {
    const auto losses = state.at("losses").get<std::vector<double>>(),
               norms = state.at("norms").get<std::vector<double>>();
    require<UsageError>(losses.size() == norms.size(), "{}: spikes holds {} losses and {} norms", origin, losses.size(),
                        norms.size());
    losses_.clear(), norms_.clear();
    for (const double x : losses) remember(losses_, x, window_);  // a smaller window keeps the last ones
    for (const double x : norms) remember(norms_, x, window_);
    not_finite_ = state.at("not_finite").get<std::int64_t>();
    skipped_ = state.at("skipped").get<std::int64_t>();
  } catch (const nlohmann::json::exception& e) {
    fail<UsageError>("{}: spikes cannot be read: {}", origin, e.what());
  }
}

}  // namespace emox
