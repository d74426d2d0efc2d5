// Chooses where experts are by which documents use them: experts of all layers that the same documents use come onto
// one rank, so that a document which is computed there sends few rows (design section 6, pools that save
// communication).
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "parallel/expert/document_profiles.h"
#include "parallel/expert/placement.h"

namespace emox {

struct PlacementRequest {
  int ranks = 1, ranks_per_node = 8;  ///< ranks fill one node after another
  double load_limit = 1.05;  ///< picks of the fullest rank of a layer over the mean, where equal counts allow it
  int starts = 4;            ///< different first guesses
  int kicks = 40;            ///< times that the best is disturbed and improved again
  std::uint64_t seed = 0;
};

/// What `--load-limit` says: a number from 1 on; UsageError else.
double load_limit_of(const std::string& text);

struct ChosenPlacement {
  ExpertPlacement placement = ExpertPlacement::block(1, 1, 1);
  std::vector<std::int32_t> homes;  ///< [documents]: the rank of each; ranks have equally many tokens within 2 %
  double load_max_over_mean = 1;    ///< of the worst layer, of these documents' picks
  double home_share = 0;            ///< of the picks, those whose expert is on the document's home
};

/// Documents and experts are divided together, nodes first, then ranks inside each: by turns, every layer's experts go
/// to the part whose documents pick them most (equal counts within one; a search by exchanges keeps to the load limit),
/// and every document to the part that has most of its picks, until nothing gets better. So the layers agree on what a
/// part is without being told. The same request and documents give the same placement, everywhere. Time: (starts +
/// kicks) x rounds x documents x layers x experts; exchanges: layers x experts^2 each. Without documents: blocks.
ChosenPlacement choose_placement(const DocumentProfiles& profiles, const PlacementRequest& request);

/// Documents to ranks by `scores` [documents, ranks], the surest first (largest lead of the best rank over the next),
/// each to the best rank that has room: equally many tokens within `slack`, or one document more where they are long.
std::vector<std::int32_t> assign_homes(std::span<const double> scores, std::span<const std::int64_t> tokens, int ranks,
                                       double slack = 0.02);

}  // namespace emox
