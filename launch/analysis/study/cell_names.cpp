// What a command line says of a study's cells, and what a reader is told they are.
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>

#include "launch/analysis/report/plot.h"
#include "launch/analysis/study/cells.h"
#include "launch/config/fields.h"
#include "launch/config/nearest.h"
#include "runtime/core/error.h"

namespace emox {
namespace {

const std::vector<std::string>& known_models() {
  static const std::vector<std::string> known(std::begin(kCellModels), std::end(kCellModels));
  return known;
}

std::vector<std::string> split(const std::string& text, char at) {
  std::vector<std::string> parts;
  for (std::size_t begin = 0; begin <= text.size();) {
    const std::size_t end = std::min(text.find(at, begin), text.size());
    parts.push_back(text.substr(begin, end - begin));
    begin = end + 1;
  }
  return parts;
}

std::vector<std::string> models_of(const std::string& text, const std::string& origin) {
  std::vector<std::string> models;
  const std::vector<std::string>& known = known_models();
  for (const std::string& name : split(text, ',')) {
    std::vector<std::string> named{name};
    if (name == "fewer-experts") named = {"quarter-experts", "eighth-experts"};
    for (const std::string& model : named) {
      require<UsageError>(std::find(known.begin(), known.end(), model) != known.end(),
                          "emox study: {}: there is no cell '{}': did you mean {}?", origin, model,
                          nearest(model, known));
      require<UsageError>(std::find(models.begin(), models.end(), model) == models.end(),
                          "emox study: {}: {} stands there twice", origin, model);
      models.push_back(model);
    }
  }
  return models;
}

/// A key that a model of a study may have for itself.
void check_key(const std::string& key, const std::string& origin) {
  const auto known = key_names();
  require<UsageError>(std::find(known.begin(), known.end(), key) != known.end(),
                      "emox study: {}: unknown key '{}': did you mean {}?", origin, key, nearest_key(key, known));
  const std::string section = key.substr(0, key.find('.'));
  require<UsageError>(section == "model" || section == "moe" || section == "train",
                      "emox study: {}: {} is the same for all models of a study; a model's own are keys of [model], "
                      "[moe] and [train]",
                      origin, key);
}

}  // namespace

std::vector<std::string> parse_cells(const std::string& text) {
  return text == "all" ? known_models() : models_of(text, "--cells=" + text);
}

std::vector<CellSetting> parse_settings(const std::vector<std::string>& texts) {
  std::vector<CellSetting> settings;
  for (const std::string& text : texts) {
    const std::string origin = "--set " + text;
    const std::size_t colon = text.find(':'), equals = text.find('=');
    require<UsageError>(colon != std::string::npos && equals != std::string::npos && colon < equals,
                        "emox study: {}: expected MODEL:KEY=VALUE, e.g. standard:train.learning_rate=0.016", origin);
    const std::string key = text.substr(colon + 1, equals - colon - 1);
    check_key(key, origin);
    for (const std::string& model : models_of(text.substr(0, colon), origin)) {
      const bool twice = std::any_of(settings.begin(), settings.end(),
                                     [&](const CellSetting& s) { return s.model == model && s.key == key; });
      require<UsageError>(!twice, "emox study: {}: {} of {} has been set already", origin, key, model);
      settings.push_back({model, key, text.substr(equals + 1)});
    }
  }
  return settings;
}

std::vector<TuneAxis> parse_tune(const std::vector<std::string>& texts) {
  std::vector<TuneAxis> axes;
  for (const std::string& text : texts) {
    const std::string origin = "--tune " + text;
    const std::size_t equals = text.find('=');
    require<UsageError>(equals != std::string::npos && equals + 1 < text.size(),
                        "emox study: {}: expected KEY=VALUE,VALUE,..., e.g. train.learning_rate=0.004,0.008", origin);
    TuneAxis axis{text.substr(0, equals), split(text.substr(equals + 1), ',')};
    check_key(axis.key, origin);
    const bool twice = std::any_of(axes.begin(), axes.end(), [&](const TuneAxis& a) { return a.key == axis.key; });
    require<UsageError>(!twice, "emox study: {}: there is a --tune of {} already", origin, axis.key);
    axes.push_back(std::move(axis));
  }
  return axes;
}

std::string model_label(const std::string& model, const Recipe& recipe) {
  const ModelConfig& m = recipe.model;
  if (!m.is_moe()) return "dense";
  if (m.pool == PoolMode::Off)
    return model == "standard" ? "standard MoE" : fmt::format("standard MoE of {} experts", m.num_experts);
  std::vector<std::string> parts{"EMO"};
  if (m.pool == PoolMode::Fixed) parts.push_back(fmt::format("pools of {}", m.pool_size));
  if (m.pool == PoolMode::Label) parts.emplace_back("pools by label");
  if (model == "local-balance") parts.emplace_back("local balance");
  if (model == "no-shared") parts.emplace_back("no shared expert");
  if (m.pool_free_share > 0) parts.push_back(percent_text(m.pool_free_share) + " of documents free");
  if (m.pool_free_tokens > 0) parts.push_back(percent_text(m.pool_free_tokens) + " of tokens free");
  if (m.pool_from_step > 0) parts.push_back(fmt::format("pools from step {}", m.pool_from_step));
  if (m.pool_until_step > 0) parts.push_back(fmt::format("pools until step {}", m.pool_until_step));
  if (m.pool_from_layer > 0) parts.push_back(fmt::format("pools from layer {}", m.pool_from_layer));
  return fmt::format("{}", fmt::join(parts, ", "));
}

}  // namespace emox
