// retention.csv: the held-out loss of models with a part of their experts (design section 5, "Study").
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace emox {

/// Loss of one domain's held-out documents under one model with `experts_kept` of its experts a layer.
struct RetentionRow {
  std::string model;  ///< "emo", "standard", or the name of another cell of the study
  std::int64_t seed = 0;
  std::string domain;
  std::string selection;                             ///< "full" (all experts), or how they were chosen
  std::int64_t experts_kept = 0, experts_total = 0;  ///< a layer, shared included; a dense model: 1 of 1
  double loss = 0;                                   ///< nats a token; of "random" the mean over its draws
  double share() const { return static_cast<double>(experts_kept) / static_cast<double>(experts_total); }
};

/// Loss of one domain under one random subset; a row "random" is the mean of its draws.
struct ChanceRow {
  std::string model;
  std::int64_t seed = 0;
  std::string domain;
  std::int64_t experts_kept = 0, experts_total = 0;
  std::int64_t draw = 0;  ///< from 0
  double loss = 0;        ///< nats a token
};

/// Every selection that a row may name, "full" first.
inline constexpr const char* kSelections[] = {"full", "layerwise", "global", "easy-ep", "one-document", "random"};

/// The file's text, a header line first; losses keep all their digits. UsageError for rows that read_retention() would
/// refuse.
std::string write_retention(const std::vector<RetentionRow>& rows);
/// Strict: the header as written, seven fields a line, whole numbers, finite losses, known selections, kept = total
/// exactly for "full", no two lines for the same cell. UsageError "NAME:LINE: what is wrong" otherwise.
std::vector<RetentionRow> read_retention(const std::string& text, const std::string& name);

/// The same for chance.csv: model,seed,domain,experts_kept,experts_total,draw,loss.
std::string write_chance(const std::vector<ChanceRow>& rows);
std::vector<ChanceRow> read_chance(const std::string& text, const std::string& name);

}  // namespace emox
