// Held-out loss of a loaded model, with all of its experts or with some (spec 6).
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "data/loader/heldout.h"
#include "launch/analysis/inference/loaded_model.h"
#include "launch/analysis/modularity/report.h"
#include "launch/run/evaluator.h"

namespace emox {

/// All members are collective. Both arguments must outlive it.
class HeldOutLosses {
 public:
  /// Reads the held-out documents of the model's sources; sources without any are named in the log. UsageError when
  /// none has.
  HeldOutLosses(Session& session, LoadedModel& loaded);

  /// "as trained", "changed: ..." or "unknown: ...": whether what is read are the files that the run had. It is in the
  /// log, too, when it is not "as trained".
  const std::string& data() const { return data_; }

  /// "label: why" of every source that has no held-out documents here.
  const std::vector<std::string>& skipped() const { return skipped_; }

  Evaluation with_all();
  /// The loss, and what the experts tell about topic and token.
  std::pair<Evaluation, Modularity> modularity();
  /// Of all domains, with the experts of this subset; `source` is what errors call it.
  Evaluation with(const ExpertSubset& subset, const std::string& source);
  /// Of one domain; UsageError when there is no such domain with held-out documents.
  Evaluation with(const ExpertSubset& subset, const std::string& source, const std::string& domain);
  /// Each domain with the experts that its own training documents choose.
  Evaluation with_own_experts(const SelectionOptions& options);

 private:
  Evaluation with(const ExpertSubset& subset, const std::string& source, const std::vector<HeldOut>& domains);
  Evaluation run(const std::vector<HeldOut>& domains, const PassObserver& observer = {});

  Session& session_;
  LoadedModel& loaded_;
  HeldOutSet held_out_;
  std::string data_;
  std::vector<std::string> skipped_;
};

}  // namespace emox
