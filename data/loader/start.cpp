#include "data/loader/start.h"

#include <algorithm>

#include "data/loader/mixture.h"
#include "runtime/core/error.h"

namespace emox {

LoaderStart continue_after(const LoaderConfig& config, std::int64_t step, const std::vector<SourceSpec>& now,
                           const std::vector<std::string>& replaced) {
  const LoaderStart& from = config.start;
  require(step >= from.step, "the data cannot go on after step {}: they began anew after step {}", step, from.step);
  LoaderStart start;
  start.step = step;
  start.sequences = from.sequences + (step - from.step) * config.sequences_per_step;

  std::vector<double> weights;
  for (const SourceSpec& s : config.sources) weights.push_back(s.weight);
  const Mixture mixture(weights, mixture_offset(config.seed));
  start.sources = from.sources;
  for (std::size_t i = 0; i < config.sources.size(); ++i) {
    LoaderStart::Source& source = start.source_of(config.sources[i].label);
    const int number = static_cast<int>(i);
    source.read += mixture.count_before(start.sequences, number) - mixture.count_before(from.sequences, number);
  }
  for (LoaderStart::Source& s : start.sources) {
    const bool stays = std::any_of(now.begin(), now.end(), [&](const SourceSpec& n) { return n.label == s.label; });
    // Its order of sequences is not used again. The files of one that is left out are not known when it comes back.
    if (!stays || std::find(replaced.begin(), replaced.end(), s.label) != replaced.end()) s.label.clear();
  }
  for (const SourceSpec& s : now) start.source_of(s.label);
  return start;
}

LoaderStart::Source& LoaderStart::source_of(const std::string& label) {
  for (Source& s : sources)
    if (s.label == label) return s;
  std::int64_t order = 0;
  for (const Source& s : sources) order = std::max(order, s.order + 1);
  return sources.emplace_back(Source{label, order, 0});
}

}  // namespace emox
