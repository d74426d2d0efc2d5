// Copies of a token file on the disks of nodes: the same content is fine, anything else is an error with names.
#include "launch/run/node_files.h"

#include <gtest/gtest.h>

#include <atomic>
#include <functional>
#include <string>
#include <vector>

#include "runtime/core/error.h"
#include "tests/support/messages.h"
#include "tests/support/ranks.h"

namespace emox::test {
namespace {

FileIdentity file(const std::string& path, const std::string& fingerprint, std::int64_t tokens = 100) {
  FileIdentity f;
  f.path = path, f.fingerprint = fingerprint, f.layout.tokens = tokens;
  return f;
}

/// Seven files that the ranks identified in turn, on three nodes of two ranks; `look` is what a rank sees of file 4.
struct Nodes {
  std::atomic<int> reads = 0;
  std::string run(const std::function<std::string(int)>& mark, const std::function<FileIdentity(int)>& look) {
    std::vector<SeenFile> files;
    for (int i = 0; i < 7; ++i) files.push_back({file("part-" + std::to_string(i) + ".npy", "a"), "m", i % 6});
    ThreadWorld world(6, {.ranks_per_node = 2});
    std::atomic<int> errors = 0;
    std::string text;
    run_ranks(world, [&](Communicator& comm) {
      const NodeView view{.mark = [&](std::size_t i) { return i == 4 ? mark(comm.rank()) : std::string("m"); },
                          .identify =
                              [&](std::size_t i) {
                                ++reads;
                                EXPECT_EQ(i, 4U) << "the others have the mark that was seen";
                                return look(comm.rank());
                              }};
      try {
        require_same_files(comm, files, view);
      } catch (const UsageError& e) {
        ++errors;
        if (comm.rank() == 5) text = e.message();
      }
    });
    EXPECT_TRUE(errors == 0 || errors == 6) << "all ranks or none: " << errors;
    return text;
  }
};

TEST(NodeFiles, OneFileOfASharedFileSystemIsReadOnce) {
  Nodes nodes;
  EXPECT_EQ(nodes.run([](int) { return "m"; }, [](int) { return file("part-4.npy", "b"); }), "");
  EXPECT_EQ(nodes.reads, 0);
}

TEST(NodeFiles, CopiesOfTheSameContentAreFine) {
  Nodes nodes;
  EXPECT_EQ(nodes.run([](int rank) { return "copy" + std::to_string(rank / 2); },
                      [](int) { return file("part-4.npy", "a"); }),
            "");
  EXPECT_EQ(nodes.reads, 2) << "once on each of the two nodes whose ranks had not identified it";
}

TEST(NodeFiles, OtherContentIsRefusedWithFileRankAndDifference) {
  Nodes nodes;
  // Rank 4, on node 2, identified it; of node 1, rank 2 looks at files 0, 2, 4, 6.
  const std::string text =
      nodes.run([](int rank) { return rank / 2 == 1 ? "copy" : "m"; }, [](int) { return file("part-4.npy", "b"); });
  expect_parts(text, {"part-4.npy is not the same on all nodes: on that of rank 2 it has other tokens",
                      "fingerprint b, not a), compared with that of rank 4"});
}

TEST(NodeFiles, AFileThatOnlySomeNodesHaveIsNamedWithTheRank) {
  Nodes nodes;
  const std::string text = nodes.run([](int rank) { return rank / 2 == 0 ? "" : "m"; },
                                     [](int) -> FileIdentity { fail<UsageError>("cannot open part-4.npy"); });
  expect_parts(text, {"cannot open part-4.npy (on the node of rank 0; rank 4 could read it)"});
}

}  // namespace
}  // namespace emox::test
