// `emox bench dispatch`: what dispatch sends, planned for any number of ranks on one machine, beside what the formulas
// say. No model runs; every rank's plan is made by the code that training uses.
#pragma once

#include <cstdint>
#include <filesystem>
#include <nlohmann/json_fwd.hpp>
#include <span>
#include <string>
#include <vector>

#include "launch/plan/traffic.h"
#include "parallel/expert/placement.h"

namespace emox {

/// Ranks that do not exist: replicas of an expert group.
struct PlannedMesh {
  int expert_parallel = 8;
  int data_parallel = 1;
  int ranks_per_node = 8;
};

/// Documents of one rank in one layer.
struct PlannedTokens {
  std::vector<std::int32_t> segments{0};  ///< [docs + 1]
  std::vector<std::uint8_t> pools;        ///< [docs, experts]; empty: no restriction
  std::vector<std::int32_t> ids;          ///< [tokens, top_k]
};

struct DispatchTraffic {
  std::int64_t tokens = 0, documents = 0;
  double ranks_per_token = 0, nodes_per_token = 0;  ///< the source's own included
  double rows_sent_per_token = 0;                   ///< flat: rows to other ranks
  double node_rows_sent_per_token = 0;              ///< two-level: rows that leave the node
  double ranks_per_document = 0;                    ///< that the pool can reach
  double rows_max_over_mean = 0;                    ///< expert rows of the fullest rank
  double bytes_per_token = 0;                       ///< flat, forward and backward, f32 rows of `width`
  double plan_ns_per_row = 0;                       ///< planning time / rows that the experts work on
};
/// Plans all ranks of the mesh; tokens[rank] of world ranks in replica order.
DispatchTraffic plan_traffic(const PlannedMesh& mesh, std::span<const std::int32_t> rank_of_expert,
                             std::span<const PlannedTokens> tokens, std::int64_t top_k, std::int64_t width);

struct DispatchBenchOptions {
  std::vector<PlannedMesh> meshes;  ///< empty: expert_parallel 2, 4, ..., 64
  std::int64_t width = 2048;
  std::int64_t documents = 512;  ///< of all ranks together
  std::int64_t tokens_per_document = 64;
  std::uint64_t seed = 0;
};
/// Synthetic documents with uniform picks: standard top-k and pools of 16, 32, 64 and U[8,128] out of 128 experts, k =
/// 8, random and clustered placement. {"rows": [...], "planning": [...]}.
nlohmann::ordered_json bench_dispatch(const DispatchBenchOptions& options);
struct ReplayOptions {
  std::string placement = "block";  ///< block, random, affinity, or a file
  std::uint64_t placement_seed = 0;
  std::int64_t width = 2048;
  std::int64_t sequences = 4;  ///< of a rank in a micro-batch; replay_homes only
  double load_limit = 1.05;    ///< of a placement by affinity, PlacementRequest
};
/// A recording of `emox train --record-pools`, a row a layer and their mean. Documents are dealt to the planned ranks
/// in turn; when there are fewer documents than ranks they are used again ("documents_reused"). Every second document
/// chooses a placement by affinity.
nlohmann::ordered_json replay_dispatch(const std::filesystem::path& recording, const PlannedMesh& mesh,
                                       const ReplayOptions& options);
/// The same as a table for people.
std::string dispatch_table(const nlohmann::ordered_json& result);

}  // namespace emox
