#include "data/loader/loader.h"

#include <algorithm>
#include <set>
#include <utility>

#include "data/loader/identity.h"
#include "data/loader/mixture.h"
#include "data/loader/permutation.h"
#include "data/loader/source_files.h"
#include "runtime/core/error.h"
#include "runtime/core/idx.h"

namespace emox {

struct Loader::Source {
  std::vector<TokenFile> files;
  std::vector<std::int64_t> begins;  ///< of each file in the joined stream, and its end
  std::int64_t windows = 0;          ///< whole sequences in the stream; the tail beyond them is never read
  std::int64_t order = 0, read = 0;  ///< of LoaderStart

  std::int64_t tokens() const { return begins.back(); }
  void copy(std::int64_t begin, std::int64_t count, std::int32_t* out) const {
    auto file = idx(std::upper_bound(begins.begin(), begins.end(), begin) - begins.begin()) - 1;
    while (count > 0) {
      const std::int64_t here = std::min(count, begins[file + 1] - begin);
      files[file].read(begin - begins[file], here, out);
      begin += here, out += here, count -= here;
      ++file;
    }
  }
};

struct Loader::Order {
  Mixture mixture;
  Philox family;
};

namespace {

std::vector<double> weights_of(const std::vector<SourceSpec>& sources) {
  std::vector<double> weights;
  for (const SourceSpec& s : sources) weights.push_back(s.weight);
  return weights;
}

}  // namespace

Loader::Loader(const LoaderConfig& config) : config_(config) {
  begin();
  for (const SourceSpec& spec : config.sources) {
    std::vector<TokenFile> files;
    for (const auto& path : training_files(spec)) files.emplace_back(path, config.vocab_size, config.token_width);
    add(spec, std::move(files));
  }
  begin_at(config.start);
}

Loader::Loader(const LoaderConfig& config, const DataIdentity& data) : config_(config) {
  begin();
  require<ShapeError>(data.sources.size() == config.sources.size(), "{} sources, but files of {}",
                      config.sources.size(), data.sources.size());
  for (std::size_t i = 0; i < config.sources.size(); ++i) {
    std::vector<TokenFile> files;
    for (const FileIdentity& f : data.sources[i].train) files.emplace_back(f.path, f.layout, config.vocab_size);
    add(config.sources[i], std::move(files));
  }
  begin_at(config.start);
}

void Loader::begin() {
  require<UsageError>(config_.sequence_length >= 1 && config_.sequences_per_step >= 1,
                      "model.sequence_length = {} and train.batch_sequences = {} must be at least 1",
                      config_.sequence_length, config_.sequences_per_step);
  order_ = std::make_unique<Order>(Order{Mixture(weights_of(config_.sources), mixture_offset(config_.seed)),
                                         Philox(config_.seed, RngPurpose::DataOrder)});
  std::set<std::string> labels;
  for (const SourceSpec& spec : config_.sources)
    require<UsageError>(labels.insert(spec.label).second, "data.source {} is given twice; labels must differ",
                        spec.label);
}

void Loader::add(const SourceSpec& spec, std::vector<TokenFile> files) {
  auto source = std::make_unique<Source>();
  source->files = std::move(files);
  source->begins.push_back(0);
  for (const TokenFile& f : source->files) source->begins.push_back(source->begins.back() + f.size());
  source->windows = source->tokens() / config_.sequence_length;
  require<UsageError>(
      source->windows >= 1,
      "data.source {}: {} holds {} tokens, fewer than one sequence of {}; lower model.sequence_length or use a "
      "larger file",
      spec.label, source->files.size() == 1 ? source->files.front().path().string() : spec.path, source->tokens(),
      config_.sequence_length);
  sources_.push_back(std::move(source));
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
  std::vector<Sequence> batch(idx(end - begin));
  for (std::int64_t place = begin; place < end; ++place) {
    const std::int64_t g = sequences_before(step) + place;
    const int label = order_->mixture.source_of(g);
    const Source& source = *sources_[idx(label)];
    const std::int64_t n = read_before(g, idx(label));
    const Permutation order(order_->family, static_cast<std::uint32_t>(source.order),
                            static_cast<std::uint32_t>(n / source.windows), source.windows);
    Sequence& sequence = batch[idx(place - begin)];
    sequence.label = label;
    sequence.tokens.resize(idx(config_.sequence_length));
    source.copy(order(n % source.windows) * config_.sequence_length, config_.sequence_length, sequence.tokens.data());
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
