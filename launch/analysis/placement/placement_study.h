// What placements and homes of documents would send, measured on a recording: `emox placement`.
#pragma once

#include <cstdint>
#include <filesystem>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

#include "parallel/expert/placement_optimiser.h"

namespace emox {

struct PlacementStudyOptions {
  PlacementRequest request;
  std::int64_t from_step = 0;
  std::int64_t least_tokens = 16;        ///< of a document that a placement is chosen by
  std::int64_t most_documents = 20'000;  ///< that it is chosen by: evenly spread ones of a longer recording
};

/// Per token and layer, but for the loads.
struct PlacementFigures {
  std::string name;
  double ranks = 0, nodes = 0;          ///< that a token's picks are on
  double rows = 0;                      ///< sent, where any rank may have computed the document
  double rows_home = 0;                 ///< sent by the rank that has most of its picks, ranks equally full (hindsight)
  double rows_home_inter = 0;           ///< of these, two-level, to other nodes
  double load_max_over_mean = 1;        ///< of the worst layer, over all measured documents
  double micro_load_max_over_mean = 1;  ///< the same of a layer and recorded micro-batch, on average
};

struct PlacementStudy {
  PoolTraceHeader header;
  std::int64_t chosen_by = 0, measured = 0, measured_tokens = 0;  ///< documents, documents, tokens
  ChosenPlacement chosen;
  std::vector<PlacementFigures> figures;  ///< block, random (mean of three), affinity
};

/// Every second document chooses, the others are measured. UsageError for a recording without documents, and where the
/// ranks are more than the experts.
PlacementStudy study_placement(const std::filesystem::path& recording, const PlacementStudyOptions& options);

nlohmann::ordered_json to_json(const PlacementStudy& study, const PlacementRequest& request);
std::string placement_table(const PlacementStudy& study, const PlacementRequest& request);

}  // namespace emox
