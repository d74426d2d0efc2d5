// How long a training step takes by a model: the work of its parts in closed form, over the rates of a hardware file.
#pragma once

#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

#include "launch/config/recipe.h"
#include "launch/plan/hardware.h"
#include "launch/plan/traffic.h"
#include "parallel/comm/shares.h"

namespace emox {

/// Ranks that do not run, and what is assumed of the data. A rank: the one with most sequences.
struct StepShape {
  int ranks = 1, ranks_per_node = 1, expert_parallel = 1;
  bool two_level = false;
  std::int64_t sequences = 1;      ///< that a rank computes in a step
  std::int64_t micro_batches = 1;  ///< in which it does so
  int passes = 1;                  ///< forward passes of the layers: 2 when they run again for lack of memory
  double document_tokens = 1024;   ///< mean length; attention stays inside a document where the recipe says so
  double imbalance = 1.1;          ///< expert rows of the fullest rank / mean, where experts are elsewhere
  std::int64_t local_elements = 0, owned_elements = 0;  ///< parameters here, and those whose update is this rank's
  Traffic gradients, weights;                           ///< that the rank receives in a step
};
StepShape step_shape(const Recipe& recipe, int ranks, int ranks_per_node);

/// What a rank computes in a step: floating-point operations (multiplications and additions apart), forward and
/// backward, with what runs twice; and bytes that ops read and write.
struct StepWork {
  double tokens = 0;
  double dense = 0, experts = 0, shared = 0, head = 0,
         attention = 0;            ///< FLOPs; `shared`: of `dense`, what hides dispatch
  double rows = 0, optimizer = 0;  ///< bytes
  double useful = 0;               ///< FLOPs that a step cannot do without: what MFU counts (model/transformer/flops.h)
};
StepWork step_work(const Recipe& recipe, const StepShape& shape, DType activations);

/// Bytes that a rank sends for one MoE layer in a step: rows forth and back, both passes; with expert numbers, gates
/// and the gates' gradients. As `emox bench dispatch` counts them.
struct DispatchBytes {
  double intra = 0, inter = 0;
};
DispatchBytes dispatch_bytes(const Recipe& recipe, const StepShape& shape, DType activations);

struct PhaseEstimate {
  std::string name, limit;  ///< limit: "gemm", "memory", "links" or "host"
  double seconds = 0;       ///< that the step is longer for it
  double hidden = 0;        ///< communication under other work
  std::string tag;          ///< the weakest of the figures it is made of
};
struct StepEstimate {
  std::vector<PhaseEstimate> phases;
  double step_s = 0;
  double exposed_s = 0;  ///< communication, of step_s
  double mfu = 0;        ///< useful FLOPs over the peak's
  std::string tag;       ///< the weakest tag
  /// Half the width of the band around step_s, as a part of it: by the tags, as no rate but a measured one is known.
  double band = 0;
};
StepEstimate estimate_step(const Recipe& recipe, const StepShape& shape, const Hardware& hardware);

nlohmann::ordered_json to_json(const StepEstimate& estimate);

}  // namespace emox
