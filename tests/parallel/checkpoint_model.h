// A small model's state, and directories to save it in, for the checkpoint tests.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <fstream>
#include <string>
#include <vector>

#include "parallel/checkpoint/checkpoint.h"
#include "runtime/core/error.h"
#include "tests/support/checkpoints.h"
#include "tests/support/ranks.h"
#include "tests/support/support.h"

namespace emox::test {

/// Parameters under published names: layers of three experts, an embedding as large as two of them, odd shapes.
class CheckpointModel {
 public:
  explicit CheckpointModel(unsigned seed, int layers = 2) : seed_(seed) {
    add("model.embed_tokens.weight", {97, 8});
    for (int l = 0; l < layers; ++l) {
      const std::string layer = "model.layers." + std::to_string(l) + ".";
      add(layer + "pre_attention_layernorm.weight", {8});
      add(layer + "mlp.gate.weight", {3, 8});
      for (int e = 0; e < 3; ++e)
        for (const char* part : {"gate_proj", "up_proj", "down_proj"})
          add(layer + "mlp.experts." + std::to_string(e) + "." + part + ".weight", {4, 8});
    }
    add("model.scale", {});
    add("model.planes.weight", {3, 5, 7});
    add("model.cubes.weight", {2, 3, 4, 5});
  }

  std::vector<CheckpointPiece> pieces(bool moments = true) const {
    std::vector<CheckpointPiece> list;
    for (const Parameter& p : parameters_)
      moments ? add_whole(list, p.name, p.weight, p.exp_avg, p.exp_avg_sq) : add_whole(list, p.name, p.weight);
    return list;
  }

 private:
  struct Parameter {
    std::string name;
    Tensor weight, exp_avg, exp_avg_sq;
  };
  void add(const std::string& name, Shape shape) {
    parameters_.push_back(
        {name, random_tensor(shape, ++seed_), random_tensor(shape, ++seed_), random_tensor(shape, ++seed_)});
  }
  unsigned seed_;
  std::vector<Parameter> parameters_;
};

inline bool same_bits(const TensorView& a, const TensorView& b) {
  return a.bytes() == b.bytes() && (a.bytes() == 0 || std::memcmp(a.raw(), b.raw(), a.bytes()) == 0);
}

inline bool same_bits(const std::vector<CheckpointPiece>& a, const std::vector<CheckpointPiece>& b) {
  return std::equal(a.begin(), a.end(), b.begin(), b.end(), [](const auto& x, const auto& y) {
    return x.name == y.name && x.role == y.role && same_bits(x.view, y.view);
  });
}

/// One whole array.
inline CheckpointPiece whole(const std::string& name, const TensorView& view, const std::string& role = "weight") {
  return {name, role, view.shape(), 0, view.shape().numel(), view};
}

/// Elements [begin, end) of a whole array, where they lie.
inline CheckpointPiece part_of(const CheckpointPiece& p, std::int64_t begin, std::int64_t end) {
  return {p.name, p.role, p.shape, begin, end, p.view.reshape({p.view.numel()}).rows(begin, end)};
}

inline CheckpointMeta some_meta() {
  return {.tokens = 4096,
          .seed = 18446744073709551615ULL,
          .recipe = "[run]\nname = \"tëst\"\n",
          .extra = {{"position", 7}},
          .placement = {{"expert_parallel", 2}, {"table", {{0, 1, 0}, {1, 0, 1}}}},
          .mesh = {{"expert_parallel", 2}, {"data_parallel", 1}}};
}

/// Saves the model of this seed (its moments too) from so many ranks.
inline std::filesystem::path save_model(const std::filesystem::path& directory, std::int64_t step, unsigned seed,
                                        int ranks = 1) {
  std::filesystem::path path;
  run_ranks(ranks, [&](Communicator& comm) {
    const CheckpointModel model(seed);
    const auto mine = divide_among_ranks(model.pieces(), comm.rank(), comm.size());
    const auto saved = save_checkpoint(comm, directory, step, mine, some_meta());
    if (comm.rank() == 0) path = saved;
  });
  return path;
}

/// What a failed call says; fails the test when it does not fail with an IoError.
template <typename Work>
std::string io_error_of(const Work& work) {
  try {
    work();
  } catch (const IoError& e) {
    return e.message();
  }
  ADD_FAILURE() << "no IoError";
  return "";
}

/// Sorted; `latest`, which every save moves, is left out.
inline std::vector<std::string> names_in(const std::filesystem::path& directory) {
  std::vector<std::string> names;
  for (const auto& e : std::filesystem::directory_iterator(directory))
    if (e.path().filename() != "latest") names.push_back(e.path().filename().string());
  std::sort(names.begin(), names.end());
  return names;
}

inline void flip_byte(const std::filesystem::path& path, std::size_t offset) {
  std::fstream file(path, std::ios::binary | std::ios::in | std::ios::out);
  file.seekg(static_cast<std::streamoff>(offset));
  const auto byte = static_cast<char>(file.get() ^ 1);
  file.seekp(static_cast<std::streamoff>(offset));
  file.put(byte);
}

}  // namespace emox::test
