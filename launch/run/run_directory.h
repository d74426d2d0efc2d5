// Files of a run (design section 5): recipe.ini, run.json, metrics.jsonl, eval.jsonl, checkpoints/, log/.
#pragma once

#include <filesystem>
#include <map>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <vector>

#include "launch/run/run_start.h"
#include "launch/run/session.h"
#include "model/transformer/language_model.h"
#include "parallel/checkpoint/checkpoint.h"

namespace emox {

class RunDirectory {
 public:
  explicit RunDirectory(std::filesystem::path root) : root_(std::move(root)) {}
  const std::filesystem::path& root() const { return root_; }
  std::filesystem::path recipe() const { return root_ / "recipe.ini"; }
  std::filesystem::path manifest() const { return root_ / "run.json"; }
  std::filesystem::path metrics() const { return root_ / "metrics.jsonl"; }
  std::filesystem::path evaluations() const { return root_ / "eval.jsonl"; }
  std::filesystem::path checkpoints() const { return root_ / "checkpoints"; }
  std::filesystem::path log(int rank) const;
  bool has_checkpoints() const;
  /// UsageError unless nothing is there, or a run of emox: files of somebody else are not written between. `mark`: what
  /// only such a directory holds; a study's has "cells".
  void check_is_run(const char* mark = "run.json") const;
  /// The record of eval.jsonl that was written after that step; nothing when there is none, or only part of it.
  std::optional<nlohmann::json> evaluation_after(std::int64_t step) const;

  /// The files that earlier jobs of this run wrote for an option such as "--trace", by run.json.
  std::vector<std::string> outputs_of(const std::string& option) const;

  /// On one rank. Writes recipe.ini unless it says the same; one that was edited by hand is moved aside, which is
  /// noted.
  void write_recipe(const Recipe& recipe, std::vector<std::string>& notes) const;

  /// Collective. Rank 0 makes the directories, writes recipe.ini, adds this job to run.json, and moves out of the
  /// history what is later than start.step. Nothing is lost: what somebody else wrote in its place, or cannot stay, is
  /// moved aside under a name that says when, and the log says so. IoError when a file cannot be read or written.
  /// `outputs`: what the job writes elsewhere, option and file.
  void prepare(Session& session, const RunStart& start, const std::vector<std::string>& command,
               const std::map<std::string, std::string>& outputs = {}) const;

 private:
  nlohmann::ordered_json jobs() const;
  void add_job(nlohmann::ordered_json job, std::vector<std::string>& notes) const;
  void settle_histories(std::int64_t step, std::vector<std::string>& notes) const;
  std::filesystem::path root_;
};

/// UsageError when a file that a command is to write would lie in a checkpoint's directory, among what its manifest
/// describes.
void require_outside_checkpoints(const std::string& command, const std::filesystem::path& output);

}  // namespace emox
