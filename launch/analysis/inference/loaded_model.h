// A model as commands load it from a checkpoint to run it, with the memory for it, and choosing its experts.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "data/loader/calibration.h"
#include "data/tokenize/tokenizer.h"
#include "launch/config/recipe.h"
#include "launch/run/session.h"
#include "launch/run/sharding.h"
#include "model/modularity/select_experts.h"
#include "model/transformer/inference_memory.h"
#include "parallel/checkpoint/checkpoint.h"

namespace emox {

/// What decides a choice of experts besides the text.
struct SelectionOptions {
  SelectionMethod method = SelectionMethod::Layerwise;
  std::vector<std::int64_t> keep;  ///< one number, or one a layer
  std::int64_t examples = 32;      ///< documents of a domain, at most
  std::uint64_t seed = 0;          ///< of `random`, and of which documents
  std::uint32_t draw = 0;          ///< of `random`: which of a domain's independent draws
};

class LoadedModel {
 public:
  /// Collective. The newest intact checkpoint of a run, or this one, on the ranks of the session: its own sharding as
  /// far as they allow. `overrides` change its recipe.
  LoadedModel(Session& session, const std::filesystem::path& where, const std::vector<std::string>& overrides);

  std::filesystem::path path;  ///< of the checkpoint
  Manifest manifest;           ///< its recipe is as it was saved; arrays and files on rank 0
  LoadReport read;             ///< of its files
  Recipe recipe;
  std::vector<SourceSpec> sources;   ///< their paths are where they were found
  std::vector<std::string> missing;  ///< a line for each source that is not there
  std::unique_ptr<Tokenizer> tokenizer;
  std::unique_ptr<Sharding> sharding;
  std::unique_ptr<LanguageModel> model;
  std::unique_ptr<InferenceMemory> memory;

  /// UsageError with the labels that there are.
  const SourceSpec& source(const std::string& label) const;
  /// Collective. "as trained", "changed: ..." or "unknown: ...": whether the held-out files are those of the run.
  std::string compare_held_out(Session& session) const;
  /// Collective. The same of the training files of one source.
  std::string compare_training_text(Session& session, const SourceSpec& domain) const;
  /// Collective. The experts that these documents choose; its provenance says the checkpoint too. Warns when another
  /// number of ranks could choose otherwise.
  ExpertSubset select(Session& session, const Documents& documents, const SelectionOptions& options);
  /// By training documents of the domain; `random` draws for every domain anew.
  ExpertSubset select_for_domain(Session& session, const SourceSpec& domain, const SelectionOptions& options);

 private:
  ExpertSubset select(Session& session, const Documents& documents, const SelectionOptions& options,
                      std::uint64_t stream);
};

}  // namespace emox
