// How modular a routing is: measures on counts of picks, defined in README.md of this folder. Pure functions;
// everything here is about one layer unless it says otherwise.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace emox {

/// `count` picks of the routed `expert` by tokens of identity `token`.
struct PickCount {
  std::int32_t token = 0, expert = 0;
  std::int64_t count = 0;
};

inline constexpr std::int64_t kOwnFile = -1;

/// One document in one layer. The pairs (token, expert) are different.
struct DocumentPicks {
  std::int32_t domain = 0;
  std::vector<PickCount> picks;
  /// Source file: documents of one file of a domain are pieces of one draw. kOwnFile: the document is a draw by itself.
  std::int64_t file = kOwnFile;
};

/// A value and what every document contributes to its error: value(sample) - value(world) is about the sum of
/// influence. Sums to 0 over the documents.
struct Measured {
  double value = 0;
  std::vector<double> influence;  ///< [documents]
};

/// Of a value, from files drawn independently inside each domain (stratified, by cluster): a domain of m files adds
/// m / (m - 1) sum (influence of a file - the files' mean)^2 to the variance, one of a single file its influence^2. The
/// influence of a file is the sum of its documents'.
double standard_error(const Measured& measured, std::span<const DocumentPicks> documents);

/// Half of a 95 % interval: so many standard errors as Student's t says for the files that there are. Infinite for a
/// single file: nothing is known about others.
double half_interval(const Measured& measured, std::span<const DocumentPicks> documents);

/// Share of a document's picks that its `top` most used experts have, mean over documents.
struct Concentration {
  double share = 0;      ///< of the routed experts
  std::int64_t top = 1;  ///< experts: the share, rounded, at least one
  Measured value;
  double chance = 0;  ///< the same with picks dealt to the documents at random
};

/// Mutual information of a pick's expert and something else about the pick.
struct Information {
  Measured bits;                 ///< corrected for the finite sample (Miller-Madow)
  double correction = 0;         ///< that was added to the plug-in value, bits
  double possible = 0;           ///< min(H(expert), H(other)), bits: what it could be at most
  Measured normalized;           ///< bits / possible; nan when nothing is possible
  double chance = 0;             ///< bits with the other variable shuffled (README)
  double normalized_chance = 0;  ///< chance / possible; of a mean over layers, the mean of theirs, as `normalized` is
};

struct LayerModularity {
  std::vector<Concentration> concentration;  ///< one for each share asked for
  Information topic;                         ///< other = domain of the document
  Information surface;                       ///< other = identity of the token
};

/// Throws ShapeError without documents, for a document without picks, and for an expert that is not in [0, experts).
/// `seed` is of the shuffles.
LayerModularity measure_layer(std::span<const DocumentPicks> documents, std::int64_t experts,
                              std::span<const double> shares, std::uint64_t seed);

/// Mean over layers of the same documents; its influences, too, so that the standard error knows that layers go
/// together. Throws ShapeError without layers.
LayerModularity mean_over_layers(std::span<const LayerModularity> layers);

}  // namespace emox
