#include "launch/train/run_directory.h"

#include <fmt/format.h>
#include <unistd.h>
#include <nlohmann/json.hpp>

#include <cstdio>
#include <fstream>
#include <sstream>

#include "launch/config/recipe_file.h"
#include "launch/train/lease_holder.h"
#include "parallel/checkpoint/layout.h"
#include "parallel/comm/progress.h"
#include "runtime/core/error.h"
#include "runtime/core/version.h"
#include "runtime/cpu/processor.h"
#include "runtime/ops/basic.h"

namespace emox {
namespace {

std::string read_text(const std::filesystem::path& path) {
  std::ifstream in(path);
  std::ostringstream text;
  text << in.rdbuf();
  return text.str();
}

// Beside, then renamed: a crash leaves the old file or the new one.
void write_text(const std::filesystem::path& path, const std::string& text) {
  const std::filesystem::path temporary = path.string() + ".tmp";
  std::FILE* f = std::fopen(temporary.c_str(), "w");
  require<IoError>(f != nullptr, "cannot write {}: check that the directory exists and is writable",
                   temporary.string());
  const bool ok =
      std::fwrite(text.data(), 1, text.size(), f) == text.size() && std::fflush(f) == 0 && fsync(fileno(f)) == 0;
  std::fclose(f);
  require<IoError>(ok && std::rename(temporary.c_str(), path.c_str()) == 0, "cannot write {}: is the disk full?",
                   path.string());
}

nlohmann::ordered_json describe_run(Session& session, const Recipe& recipe, const std::vector<std::string>& command) {
  char host[256] = "unknown";
  gethostname(host, sizeof host - 1);
  return {{"emox", kVersion},
          {"command", command},
          {"started", utc_now()},
          {"host", host},
          {"processor", processor_name()},
          {"instructions", cpu::compiled_instructions()},
          {"compiler", __VERSION__},
          {"ranks", session.comm().size()},
          {"ranks_per_node", session.comm().node_size()},
          {"transport", std::string(session.comm().transport())},
          {"threads_per_rank", session.ctx().threads},
          {"recipe", to_json(recipe)}};
}

}  // namespace

std::filesystem::path RunDirectory::log(int rank) const { return root_ / "log" / fmt::format("rank-{:05}.txt", rank); }

bool RunDirectory::has_checkpoints() const { return !list_checkpoints(checkpoints()).empty(); }

std::optional<nlohmann::json> RunDirectory::evaluation_after(std::int64_t step) const {
  std::ifstream in(evaluations());
  for (std::string line; std::getline(in, line) && !in.eof();) {  // a line without its end is torn
    nlohmann::json record = nlohmann::json::parse(line, nullptr, false);
    if (record.is_object() && record.value("step", std::int64_t{-1}) == step) return record;
  }
  return std::nullopt;
}

void RunDirectory::prepare(Session& session, const Recipe& recipe, const std::vector<std::string>& command,
                           bool resuming) const {
  on_root(session, [&] {
    std::error_code error;
    for (const char* folder : {"checkpoints", "log"}) {
      std::filesystem::create_directories(root_ / folder, error);
      require<UsageError>(!error, "cannot make the run directory {}: {}; choose another with --run.dir=DIR",
                          (root_ / folder).string(), error.message());
    }
    if (resuming && std::filesystem::exists(this->recipe()))
      check_resume(parse_recipe(read_text(this->recipe()), this->recipe().string()), recipe);
    write_text(this->recipe(), to_ini(recipe, true));
    auto runs = nlohmann::ordered_json::array();
    if (resuming && std::filesystem::exists(manifest())) {
      const auto before = nlohmann::ordered_json::parse(read_text(manifest()), nullptr, false);
      if (before.is_array()) runs = before;
    }
    runs.push_back(describe_run(session, recipe, command));
    write_text(manifest(), runs.dump(2) + "\n");
  });
  session.log().open_file(log(session.comm().rank()).string());
}

std::vector<CheckpointPiece> bias_pieces(const LanguageModel& model) {
  std::vector<CheckpointPiece> pieces;
  if (model.selection_bias().null()) return pieces;
  for (std::int64_t l = 0; l < model.config().layers; ++l) {
    const TensorView bias = model.selection_bias()[l];
    pieces.push_back(
        {fmt::format("model.layers.{}{}", l, kSelectionBiasName), "weight", bias.shape(), 0, bias.numel(), bias});
  }
  return pieces;
}

std::vector<CheckpointPiece> weight_pieces(const LanguageModel& model) {
  std::vector<CheckpointPiece> pieces = bias_pieces(model);
  for (const NamedParameter& p : model.parameters().named())
    pieces.push_back({p.name, "weight", p.slot.shape, 0, p.slot.shape.numel(), model.parameters().weight(p.slot)});
  return pieces;
}

void on_root(Session& session, const std::function<void()>& body) {
  // What is thrown again: the kinds that have an exit code of their own, and all others.
  enum Kind : std::int64_t { kOther, kUsageError, kTryAgainError };
  std::string message;
  Kind kind = kOther;
  if (session.root()) {
    const IoPhase io(session.comm());  // what one rank does for all reads or writes files
    try {
      body();
    } catch (const UsageError& e) {
      message = e.message(), kind = kUsageError;
    } catch (const TryAgainError& e) {
      message = e.message(), kind = kTryAgainError;
    } catch (const Error& e) {
      message = e.message();
    } catch (const std::exception& e) {
      message = e.what();
    }
  }
  Context& ctx = session.ctx();
  const Tensor header(ctx.device, DType::I64, {2});
  const std::int64_t values[2] = {static_cast<std::int64_t>(message.size()), kind};
  ops::copy_from_host(ctx, header, values);
  session.comm().broadcast(header, 0);
  const auto got = ops::to_host<std::int64_t>(ctx, header);
  if (got[0] == 0) return;
  const Tensor text(ctx.device, DType::U8, {got[0]});
  if (session.root()) ops::copy_from_host(ctx, text, message.data());
  session.comm().broadcast(text, 0);
  const auto bytes = ops::to_host<std::uint8_t>(ctx, text);
  message.assign(bytes.begin(), bytes.end());
  if (got[1] == kUsageError) fail<UsageError>("{}", message);
  if (got[1] == kTryAgainError) fail<TryAgainError>("{}", message);
  fail<IoError>("{}", message);
}

}  // namespace emox
