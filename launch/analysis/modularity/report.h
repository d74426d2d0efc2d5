// What `emox eval --modularity` says: the measures of model/modularity over a model's held-out documents.
#pragma once

#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

#include "data/loader/heldout.h"
#include "launch/run/evaluator.h"
#include "model/modularity/measures.h"
#include "model/modularity/routing_record.h"
#include "parallel/comm/communicator.h"

namespace emox {

/// A value with what is known about it.
struct Interval {
  double value = 0;
  double half = 0;  ///< the 95 % interval is value +- half; infinite where it is not known
  double chance = 0;
};

struct ModularityRow {
  std::vector<Interval> concentration;  ///< one for each of kConcentrationShares
  Interval topic, surface;              ///< normalized
  Interval topic_bits, surface_bits;
  double topic_possible = 0, surface_possible = 0;  ///< bits
  double topic_correction = 0, surface_correction = 0;
};

inline constexpr double kConcentrationShares[] = {0.125, 0.25};

struct Modularity {
  std::int64_t step = 0, documents = 0, domains = 0, tokens = 0, routed_experts = 0, routed_top_k = 0;
  std::int64_t files = 0;          ///< source files of the documents; 0: not known of every domain
  std::int64_t eval_pool = 0;      ///< experts that a document could use; 0: all
  std::vector<std::int64_t> tops;  ///< experts for each of kConcentrationShares
  std::vector<ModularityRow> layers;
  ModularityRow mean;  ///< over layers
  nlohmann::ordered_json to_json() const;
  /// A table of at most 24 lines of 80 columns; with many layers, of some of them.
  std::string to_text() const;
};

/// Numbers the documents of all domains, and tells a record of every pass: for evaluate().
class HeldOutRouting {
 public:
  /// Observes the model's experts from here on; UsageError for a dense model. Both must outlive this object.
  HeldOutRouting(LanguageModel& model, const std::vector<HeldOut>& held_out);
  ~HeldOutRouting();
  HeldOutRouting(const HeldOutRouting&) = delete;
  HeldOutRouting& operator=(const HeldOutRouting&) = delete;
  PassObserver observer();
  /// Collective, after evaluate(). Whole on rank 0, empty elsewhere.
  Modularity measure(Communicator& comm, std::int64_t step) const;

 private:
  LanguageModel* model_;
  RoutingRecord record_;
  std::vector<std::size_t> first_;     // number of each domain's first document
  std::vector<std::int32_t> domains_;  // [documents]
  std::vector<std::int64_t> files_;    // [documents], kOwnFile where the corpus does not say
};

}  // namespace emox
