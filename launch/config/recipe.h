// What one run is: every key of a recipe with its default, its range and its meaning (design section 5).
//
// Recipe::visit walks all sections and keys in order. Parsing, printing, help, the run manifest and the resume check
// are visitors of that walk, so a key cannot be accepted by one and unknown to another.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "model/optim/schedule.h"
#include "model/training/step_config.h"
#include "model/transformer/config.h"
#include "parallel/expert/token_dispatcher.h"
#include "runtime/core/idx.h"

namespace emox {

enum class WarmStartState : std::uint8_t { Weights, Optimizer };
enum class TokenizerKind : std::uint8_t { Byte, Dolma2 };
enum class TokenType : std::uint8_t { Auto, Uint16, Uint32 };
enum class HeldOutPart : std::uint8_t { Report, Tune };
enum class CommunicatorKind : std::uint8_t { Auto, Self, Mpi, Nccl, Staged };
enum class PlacementKind : std::uint8_t { Block, Random, File };
enum class DeviceKind : std::uint8_t { Auto, Cpu, Cuda };
enum class Precision : std::uint8_t { Auto, F32, Bf16 };

inline constexpr const char* kWarmStartStateNames[] = {"weights", "optimizer"};
inline constexpr const char* kScheduleNames[] = {"cosine", "linear", "constant", "wsd"};
inline constexpr const char* kMicroBatchMemoryNames[] = {"auto", "hold", "recompute"};
inline constexpr const char* kTokenizerNames[] = {"byte", "dolma2"};
inline constexpr const char* kTokenTypeNames[] = {"auto", "uint16", "uint32"};
inline constexpr const char* kHeldOutPartNames[] = {"report", "tune"};
inline constexpr const char* kCommunicatorNames[] = {"auto", "self", "mpi", "nccl", "staged"};
inline constexpr const char* kDispatchNames[] = {"local", "flat", "two_level", "auto"};
enum class WhenBusy : std::uint8_t { Wait, Skip };
inline constexpr const char* kWhenBusyNames[] = {"wait", "skip"};
inline constexpr const char* kPlacementNames[] = {"block", "random", "file"};

inline constexpr const char* kDeviceNames[] = {"auto", "cpu", "cuda"};
inline constexpr const char* kPrecisionNames[] = {"auto", "f32", "bf16"};

inline constexpr std::int64_t kMaxCount = std::int64_t{1} << 60;  ///< "any count": no real run reaches it

struct RunConfig {
  std::string name;  ///< empty in a recipe: the file's name without .ini
  std::string dir;   ///< empty in a recipe: runs/NAME
  std::int64_t seed = 0;
  std::int64_t stop_after_step = 0;
  double stop_after_minutes = 0;
  double wait_s = 0;
  std::string change;
  std::string warm_start;
  DeviceKind device = DeviceKind::Auto;
  WarmStartState warm_start_state = WarmStartState::Weights;

  template <typename V>
  void visit(V&& v) {
    v.text("name", name, "name of the run; default: the recipe's file name without .ini");
    v.text("dir", dir, "directory of the run, resumed when it holds one; default: runs/NAME");
    v.integer("seed", seed, 0, kMaxCount, "key of every random draw");
    v.integer("stop_after_step", stop_after_step, 0, kMaxCount,
              "save and end cleanly after this step; schedules still count to train.steps; 0 = never");
    v.real("stop_after_minutes", stop_after_minutes, 0.0, 1e9,
           "save and end cleanly at the first step after so many minutes of this job; 0 = never");
    v.real("wait_s", wait_s, 0.0, 1e7,
           "seconds to wait for a run directory that another job has, before this one ends with exit code 75");
    v.text("change", change, "keys, separated by commas, whose values this resume may change; each change is recorded");
    v.choice("device", device, kDeviceNames,
             "where to compute: auto = on the GPU where there is one that this emox can use, else on the CPU");
    v.text("warm_start", warm_start,
           "run or checkpoint whose weights a new run begins with; its own step, data and schedule begin at 0");
    v.choice("warm_start_state", warm_start_state, kWarmStartStateNames,
             "what is taken from there: weights, or also the optimizer's moments and its count of steps");
  }
};

struct TrainConfig {
  std::int64_t steps = 0;
  std::int64_t tokens = 0;
  std::int64_t batch_sequences = 16;
  std::int64_t micro_batch_sequences = 4;
  double learning_rate = 1e-3;
  ScheduleKind schedule = ScheduleKind::Cosine;
  std::int64_t warmup_steps = 0;
  double min_lr_ratio = 0.1;
  std::int64_t decay_steps = 0;
  std::int64_t anneal_from_step = 0;
  double weight_decay = 0.1;
  double beta1 = 0.9;
  double beta2 = 0.95;
  double eps = 1e-8;
  double clip_norm = 1.0;
  double skip_spikes = 0;
  std::int64_t skip_window = 128;
  double lm_z_weight = 1e-5;
  MicroBatchMemory micro_batch_memory = MicroBatchMemory::Auto;
  Precision precision = Precision::Auto;
  std::int64_t threads = 0;

  template <typename V>
  void visit(V&& v) {
    v.integer("steps", steps, 0, kMaxCount, "optimizer steps of the whole run; 0 = given by train.tokens");
    v.integer("tokens", tokens, 0, kMaxCount, "tokens of the whole run, rounded up to steps; 0 = given by train.steps");
    v.integer("batch_sequences", batch_sequences, 1, 1 << 24, "sequences of one step, all ranks together");
    v.integer("micro_batch_sequences", micro_batch_sequences, 1, 1 << 24,
              "sequences that a rank computes at a time, an upper limit");
    v.real("learning_rate", learning_rate, 0.0, 10.0,
           "peak learning rate; an anneal begins at the rate that its run had, unless this gives another");
    v.choice("schedule", schedule, kScheduleNames, "how the learning rate falls after the warm-up");
    v.integer("warmup_steps", warmup_steps, 0, kMaxCount, "steps over which the learning rate rises from 0");
    v.real("min_lr_ratio", min_lr_ratio, 0.0, 1.0, "last learning rate / peak");
    v.integer("decay_steps", decay_steps, 0, kMaxCount,
              "schedule = wsd: last steps, over which the rate falls linearly from the peak to its last value");
    v.integer("anneal_from_step", anneal_from_step, 0, kMaxCount,
              "continue a run that is at this step: the rate falls linearly from there to 0 at the last step; 0 = off");
    v.real("weight_decay", weight_decay, 0.0, 10.0, "decoupled weight decay; embeddings are not decayed");
    v.real("beta1", beta1, 0.0, 0.999999, "AdamW: decay of the first moment");
    v.real("beta2", beta2, 0.0, 0.999999, "AdamW: decay of the second moment");
    v.real("eps", eps, 1e-30, 1.0, "AdamW: added to the root of the second moment");
    v.real("clip_norm", clip_norm, 0.0, 1e9, "largest global norm of the gradient; 0 = no clipping");
    v.real("skip_spikes", skip_spikes, 0.0, 1e6,
           "a step whose loss or norm lies more than so many standard deviations above the last ones updates nothing; "
           "0 = off");
    v.integer("skip_window", skip_window, 8, 1 << 20, "skip_spikes: how many of the last steps it looks at");
    v.real("lm_z_weight", lm_z_weight, 0.0, 1e3, "weight of the squared log-sum of the vocabulary logits");
    v.choice("micro_batch_memory", micro_batch_memory, kMicroBatchMemoryNames,
             "several micro-batches under balance_scope = step: hold all activations, or run the forward pass twice");
    v.choice(
        "precision", precision, kPrecisionNames,
        "type of activations and of the weights they meet; auto = bf16 on a GPU, f32 on the CPU, which has no other. "
        "Router, losses, gradients and the optimizer are f32 always");
    v.integer("threads", threads, 0, 4096,
              "threads of a rank; 0 = OMP_NUM_THREADS, else its share of the cores that it may use");
  }
};

struct DataConfig {
  TokenizerKind tokenizer = TokenizerKind::Byte;
  TokenType token_type = TokenType::Auto;
  std::vector<std::string> source;
  std::int64_t eval_documents = 100;
  HeldOutPart eval_part = HeldOutPart::Report;

  const char* tokenizer_name() const { return kTokenizerNames[idx(tokenizer)]; }
  const char* eval_part_name() const { return kHeldOutPartNames[idx(eval_part)]; }
  /// The token that ends a document.
  std::int32_t eos_id() const;
  /// How many ids the tokenizer gives: the smallest model.vocab_size.
  std::int64_t token_count() const;

  template <typename V>
  void visit(V&& v) {
    v.choice("tokenizer", tokenizer, kTokenizerNames,
             "byte: bytes + EOS 256; dolma2: token files written with that tokenizer, EOS 100257");
    v.choice("token_type", token_type, kTokenTypeNames,
             "width of the ids in token files without a header; auto: by the vocabulary");
    v.list("source", source,
           "label:weight:path of a corpus, a token file or a pattern of them (part-*.npy); one line each, weights are "
           "relative");
    v.integer("eval_documents", eval_documents, 1, kMaxCount,
              "held-out documents of every source that an evaluation reads, at most");
    v.choice("eval_part", eval_part, kHeldOutPartNames,
             "which held-out documents: those that results are reported on, or those for choosing settings");
  }
};

struct ParallelConfig {
  CommunicatorKind communicator = CommunicatorKind::Auto;
  std::int64_t expert_parallel = 1;  ///< 0: auto (Sharding works it out from the ranks that there are)
  DispatchKind dispatch = DispatchKind::Auto;
  PlacementKind placement = PlacementKind::Block;
  std::int64_t placement_seed = 0;
  std::string placement_file;
  bool overlap_experts = true, overlap_gradients = true, overlap_weights = true;
  double watchdog_s = 0;  ///< 0: auto (watchdog_limit.h)
  double io_watchdog_s = 3600;

  template <typename V>
  void visit(V&& v) {
    v.choice("communicator", communicator, kCommunicatorNames,
             "how ranks exchange data; auto: mpi under a launcher, else self, and nccl between GPUs; staged: between "
             "GPUs through host memory, also where ranks share one");
    v.automatic("expert_parallel", expert_parallel, 1, 1 << 16,
                "ranks that share one copy of the experts; auto: as many as fit into a node and divide its ranks");
    v.choice("dispatch", dispatch, kDispatchNames,
             "how rows reach experts on other ranks: one all-to-all, or by way of the nodes; auto: by way of the nodes "
             "where "
             "experts span them; local: none are elsewhere");
    v.choice("placement", placement, kPlacementNames, "which rank holds which expert");
    v.integer("placement_seed", placement_seed, 0, kMaxCount, "seed of placement = random");
    v.text("placement_file", placement_file, "table of placement = file");
    v.flag("overlap_experts", overlap_experts, "on GPUs: rows travel while shared experts compute");
    v.flag("overlap_gradients", overlap_gradients, "on GPUs: gradients are summed while earlier layers go backward");
    v.flag("overlap_weights", overlap_weights, "on GPUs: new weights travel while the next step begins");
    v.automatic(
        "watchdog_s", watchdog_s, 0.1, 1e7,
        "seconds after which a waiting collective ends the job; auto: 20 steps as measured, at least 60, and 600 "
        "until a few steps are done");
    v.real("io_watchdog_s", io_watchdog_s, 0.1, 1e7, "the same while files are read or written");
  }
};

struct CheckpointConfig {
  std::int64_t every_steps = 0;
  double every_minutes = 0;
  std::int64_t keep_last = 2;
  std::int64_t keep_every_steps = 0;
  bool async = false;
  WhenBusy when_busy = WhenBusy::Wait;

  template <typename V>
  void visit(V&& v) {
    v.integer("every_steps", every_steps, 0, kMaxCount, "save every so many steps; 0 = after the last step only");
    v.real("every_minutes", every_minutes, 0.0, 1e9,
           "save when so many minutes have passed since the last save; 0 = never");
    v.integer("keep_last", keep_last, 1, kMaxCount, "newest checkpoints that are kept");
    v.integer("keep_every_steps", keep_every_steps, 0, kMaxCount,
              "checkpoints at multiples of this stay for good; 0 = none");
    v.flag("async", async, "training stops for a copy in memory only, and goes on while that is written");
    v.choice("when_busy", when_busy, kWhenBusyNames, "async: a save that is due while another is being written");
  }
};

struct EvalConfig {
  std::int64_t every_steps = 0;
  bool final = true;

  template <typename V>
  void visit(V&& v) {
    v.integer("every_steps", every_steps, 0, kMaxCount, "evaluate every so many steps; 0 = never during training");
    v.flag("final", final, "evaluate after the last step");
  }
};

struct Recipe {
  RunConfig run;
  ModelConfig model;  ///< sections [model] and [moe]
  TrainConfig train;
  DataConfig data;
  ParallelConfig parallel;
  CheckpointConfig checkpoint;
  EvalConfig eval;

  template <typename V>
  void visit(V&& v) {
    v.section("run"), run.visit(v);
    v.section("model"), model.visit_model(v);
    v.section("moe"), model.visit_moe(v);
    v.section("train"), train.visit(v);
    v.section("data"), data.visit(v);
    v.section("parallel"), parallel.visit(v);
    v.section("checkpoint"), checkpoint.visit(v);
    v.section("eval"), eval.visit(v);
  }

  /// train.steps, or train.tokens rounded up to whole steps.
  std::int64_t total_steps() const;
  std::int64_t tokens_per_step() const { return train.batch_sequences * model.sequence_length; }

  /// Throws UsageError unless the values fit together and can run on that many ranks.
  void validate(int ranks) const;
};

/// Throws UsageError that lists every key that differs although a resumed run may not change it. `before` is the recipe
/// of the run directory. An anneal recipe may also change the schedule and the pools of a run that ended where it
/// starts.
void check_resume(const Recipe& before, const Recipe& now);
/// "moe.pool: off -> uniform" for every key that differs, but those that name the run and its start.
std::vector<std::string> list_changes(const Recipe& before, const Recipe& now);

}  // namespace emox
