#include "tests/fuzz/manifest_fuzz.h"

#include <algorithm>
#include <fstream>
#include <functional>
#include <iterator>
#include <nlohmann/json.hpp>
#include <span>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "parallel/checkpoint/checkpoint.h"
#include "runtime/core/error.h"
#include "runtime/files/files.h"
#include "tests/fuzz/manifest_edits.h"
#include "tests/support/checkpoints.h"
#include "tests/support/ranks.h"
#include "tests/support/support.h"

namespace emox::test {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

FuzzCounts counts;

Tensor counted(Shape shape) {
  Tensor t({}, DType::F32, shape);
  float* p = t.view().data<float>();
  for (std::int64_t i = 0; i < shape.numel(); ++i) p[i] = static_cast<float>(i);
  return t;
}

/// A checkpoint of two files: x.weight [6, 2] in two parts, y.weight [3] with moments.
class Seed {
 public:
  Seed() {
    run_ranks(2, [&](Communicator& comm) {
      const Tensor x = counted({6, 2}), y = counted({3});
      std::vector<CheckpointPiece> mine;
      const std::int64_t begin = comm.rank() == 0 ? 0 : 7, end = comm.rank() == 0 ? 7 : 12;
      mine.push_back({"x.weight", "weight", x.view().shape(), begin, end, x.view().reshape({12}).rows(begin, end)});
      if (comm.rank() == 1) add_whole(mine, "y.weight", y, y, y);
      const CheckpointMeta meta{.tokens = 4096,
                                .seed = UINT64_MAX,
                                .recipe = "[run]\nname = \"t\u00ebst\"\n",
                                .extra = {{"position", 7}, {"list", {1, "a", nullptr, {{"b", 2.5}}}}},
                                .placement = {{"expert_parallel", 2}, {"table", {{0, 1, 0}, {1, 0, 1}}}},
                                .mesh = {{"expert_parallel", 2}, {"data_parallel", 1}}};
      save_checkpoint(comm, directory_.path(), 1, mine, meta);
    });
    text = read_text(path() / "manifest.json");
    content = json::parse(text);
  }
  fs::path path() const { return directory_.path() / "step-00000001"; }

  std::string text;
  json content;

 private:
  TemporaryDirectory directory_;
};

const Seed& seed() {
  static const Seed the_seed;
  return the_seed;
}

std::string text_of(Steer& steer) {
  switch (steer.below(8)) {
    case 0:
      return steer.rest();
    case 1:
      return signed_again(seed().text.substr(0, seed().text.find("\",\n") + 3) + steer.rest());
    case 2:
      return edited_text(seed().content, steer);
    default: {
      json content = seed().content;
      edit_content(content, steer);
      return edited_text(content, steer);
    }
  }
}

/// Every array that fits into little memory, in up to three pieces that need not meet.
std::vector<CheckpointPiece> some_pieces(const Manifest& manifest, std::vector<Tensor>& memory, Steer& steer) {
  constexpr std::int64_t kMost = 1 << 12;
  std::vector<CheckpointPiece> wanted;
  for (const ManifestTensor& t : manifest.tensors) {
    const std::int64_t n = t.shape.numel();
    const std::int64_t begin = n > kMost ? n - static_cast<std::int64_t>(steer.below(kMost)) : 0;
    if (wanted.size() == 64) break;
    if (t.begin != 0) continue;  // one piece of each array begins at 0
    for (const auto& [a, b] : {std::pair{begin, n}, std::pair{begin + std::min<std::int64_t>(n - begin, 3), n}}) {
      memory.emplace_back(Device{}, t.dtype, Shape{b - a});
      wanted.push_back({t.name, t.role, t.shape, a, b, memory.back()});
    }
  }
  return wanted;
}

/// False when the checkpoint was refused.
bool load(const std::string& text, const Manifest& manifest, Steer& steer) {
  const fs::path file = seed().path() / "manifest.json";
  fs::remove(file);  // some file systems write a truncated file to the disk at once
  std::ofstream(file, std::ios::binary) << text;
  std::vector<Tensor> memory;
  const std::vector<CheckpointPiece> wanted = some_pieces(manifest, memory, steer);
  try {
    load_checkpoint(*make_self_communicator(), seed().path(), wanted);
    return true;
  } catch (const Error&) {
    return false;
  }
}

void check_round_trip(const Manifest& manifest) {
  const std::string once = manifest_text(manifest);
  if (manifest_text(parse_manifest(once, "written again")) != once)
    throw std::logic_error("a manifest changes when it is written and read again");
}

}  // namespace

FuzzCounts fuzz_counts() { return counts; }

}  // namespace emox::test

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace emox::test;
  Steer steer(std::span(data, size));
  const std::string text = text_of(steer);
  emox::Manifest manifest;
  try {
    manifest = emox::parse_manifest(text, "the input");
  } catch (const emox::Error&) {
    ++counts.refused;
    return 0;
  }
  ++counts.accepted;
  check_round_trip(manifest);
  // Files are slow: a part of the manifests must do, the same ones every time.
  constexpr std::size_t kOneOf = 4;
  if (text == seed().text || std::hash<std::string>{}(text) % kOneOf != 0) return 0;
  ++(load(text, manifest, steer) ? counts.loaded : counts.unloadable);
  return 0;
}
