#include "data/loader/loader.h"

#include <filesystem>
#include <set>

#include "data/format/token_file.h"
#include "data/loader/mixture.h"
#include "data/loader/permutation.h"
#include "runtime/core/error.h"

namespace emox {

struct Loader::Source {
  Source(const std::filesystem::path& path, const LoaderConfig& config)
      : file(path, config.vocab_size), windows(file.size() / config.sequence_length) {}
  TokenFile file;
  std::int64_t windows;              ///< whole sequences in the stream; the tail beyond them is never read
  std::int64_t order = 0, read = 0;  ///< of LoaderStart
};

struct Loader::Order {
  Mixture mixture;
  Philox family;
};

namespace {

std::filesystem::path train_file(const SourceSpec& spec) {
  const std::filesystem::path path = spec.path;
  if (!std::filesystem::is_directory(path)) {
    require<UsageError>(std::filesystem::exists(path),
                        "data.source {}: {} does not exist; `emox corpus` builds the quickstart sources", spec.label,
                        spec.path);
    return path;
  }
  const std::filesystem::path file = path / "train.npy";
  require<UsageError>(std::filesystem::exists(file),
                      "data.source {}: the directory {} has no train.npy; build it with `emox corpus`", spec.label,
                      spec.path);
  return file;
}

std::vector<double> weights_of(const std::vector<SourceSpec>& sources) {
  std::vector<double> weights;
  for (const SourceSpec& s : sources) weights.push_back(s.weight);
  return weights;
}

}  // namespace

Loader::Loader(const LoaderConfig& config) : config_(config) {
  require<UsageError>(config.sequence_length >= 1 && config.sequences_per_step >= 1,
                      "model.sequence_length = {} and train.batch_sequences = {} must be at least 1",
                      config.sequence_length, config.sequences_per_step);
  order_ = std::make_unique<Order>(Order{Mixture(weights_of(config.sources), mixture_offset(config.seed)),
                                         Philox(config.seed, RngPurpose::DataOrder)});
  std::set<std::string> labels;
  for (const SourceSpec& spec : config.sources) {
    require<UsageError>(labels.insert(spec.label).second, "data.source {} is given twice; labels must differ",
                        spec.label);
    auto source = std::make_unique<Source>(train_file(spec), config);
    require<UsageError>(
        source->windows >= 1,
        "data.source {}: {} holds {} tokens, fewer than one sequence of {}; lower model.sequence_length or use a "
        "larger file",
        spec.label, source->file.path().string(), source->file.size(), config.sequence_length);
    sources_.push_back(std::move(source));
  }
  begin_at(config.start);
}

void Loader::begin_at(const LoaderStart& start) {
  config_.start = start;
  for (std::size_t i = 0; i < sources_.size(); ++i) {
    const LoaderStart::Source& source = config_.start.source_of(config_.sources[i].label);
    sources_[i]->order = source.order;
    sources_[i]->read = source.read;
  }
}

std::int64_t Loader::sequences_before(std::int64_t step) const {
  return config_.start.sequences + (step - 1 - config_.start.step) * config_.sequences_per_step;
}

std::int64_t Loader::read_before(std::int64_t g, std::size_t source) const {
  const int number = static_cast<int>(source);
  return sources_[source]->read + order_->mixture.count_before(g, number) -
         order_->mixture.count_before(config_.start.sequences, number);
}

Loader::~Loader() = default;

std::vector<Sequence> Loader::read(std::int64_t step, std::int64_t begin, std::int64_t end) const {
  require<ShapeError>(step > config_.start.step && begin >= 0 && begin <= end && end <= config_.sequences_per_step,
                      "sequences [{}, {}) of step {} were asked for; steps count from {} and have {} sequences", begin,
                      end, step, config_.start.step + 1, config_.sequences_per_step);
  std::vector<Sequence> batch(static_cast<std::size_t>(end - begin));
  for (std::int64_t place = begin; place < end; ++place) {
    const std::int64_t g = sequences_before(step) + place;
    const int label = order_->mixture.source_of(g);
    const Source& source = *sources_[static_cast<std::size_t>(label)];
    const std::int64_t n = read_before(g, static_cast<std::size_t>(label));
    const Permutation order(order_->family, static_cast<std::uint32_t>(source.order),
                            static_cast<std::uint32_t>(n / source.windows), source.windows);
    Sequence& sequence = batch[static_cast<std::size_t>(place - begin)];
    sequence.label = label;
    sequence.tokens.resize(static_cast<std::size_t>(config_.sequence_length));
    source.file.read(order(n % source.windows) * config_.sequence_length, config_.sequence_length,
                     sequence.tokens.data());
  }
  return batch;
}

const std::vector<SourceSpec>& Loader::sources() const { return config_.sources; }

std::vector<double> Loader::epochs(std::int64_t steps) const {
  std::vector<double> passes;
  for (std::size_t i = 0; i < sources_.size(); ++i) {
    const std::int64_t read = read_before(sequences_before(steps + 1), i);
    passes.push_back(static_cast<double>(read) / static_cast<double>(sources_[i]->windows));
  }
  return passes;
}

std::vector<std::string> Loader::epoch_notices(std::int64_t step) const {
  std::vector<std::string> notices;
  for (std::size_t i = 0; i < sources_.size(); ++i) {
    const std::int64_t windows = sources_[i]->windows;
    const std::int64_t before = read_before(sequences_before(step), i);
    const std::int64_t after = read_before(sequences_before(step + 1), i);
    if (after == before) continue;
    const std::int64_t pass = (after - 1) / windows;  // of the step's last sequence of this source, counted from 0
    if (pass == 0 || pass * windows < before) continue;
    notices.push_back(fmt::format("step {}: source {} starts pass {} over its {} sequences of {} tokens", step,
                                  config_.sources[i].label, pass + 1, windows, config_.sequence_length));
  }
  return notices;
}

}  // namespace emox
