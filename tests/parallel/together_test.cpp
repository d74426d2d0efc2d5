// What ranks do and say together: a failure of one of them is one of all, of a kind that callers tell apart.
#include "parallel/comm/together.h"

#include <gtest/gtest.h>

#include <functional>
#include <string>
#include <vector>

#include "runtime/core/error.h"
#include "runtime/core/idx.h"
#include "runtime/files/file_error.h"
#include "tests/support/ranks.h"

namespace emox {
namespace {

using Together = std::function<void(Communicator&)>;

/// The kind and message of what a call throws, the same on all ranks.
std::string thrown(int ranks, const Together& call) {
  std::vector<std::string> kinds(idx(ranks));
  test::run_ranks(ranks, [&](Communicator& comm) {
    std::string& kind = kinds[idx(comm.rank())];
    try {
      call(comm);
      kind = "nothing";
    } catch (const DamagedError& e) {
      kind = "damaged, " + e.message();
    } catch (const UnreadableError& e) {
      kind = "unreadable, " + e.message();
    } catch (const OtherVersionError& e) {
      kind = "version, " + e.message();
    } catch (const UsageError& e) {
      kind = "usage, " + e.message();
    } catch (const TryAgainError& e) {
      kind = "again, " + e.message();
    } catch (const IoError& e) {
      kind = "other, " + e.message();
    }
  });
  for (const std::string& kind : kinds) EXPECT_EQ(kind, kinds[0]);
  return kinds[0];
}

Together on_every(const std::function<void(int)>& work) {
  return [work](Communicator& comm) { run_together(comm, [&] { work(comm.rank()); }); };
}

// Damage on one rank and a file that another one may not read: whoever passes over damage must not miss the other.
TEST(RunTogether, DamageIsSaidOnlyWhereNothingElseIsWrong) {
  EXPECT_EQ(thrown(3, on_every([](int) {})), "nothing");
  EXPECT_EQ(thrown(3, on_every([](int rank) { require<DamagedError>(rank == 1, "bytes {}", rank); })),
            "damaged, rank 0: bytes 0");
  EXPECT_EQ(thrown(3, on_every([](int rank) {
                     require<DamagedError>(rank != 0, "bytes");
                     require<UnreadableError>(rank == 0, "mode of {}", rank);
                   })),
            "unreadable, rank 1: mode of 1");
  EXPECT_EQ(thrown(2, on_every([](int rank) { require<OtherVersionError>(rank == 0, "newer"); })),
            "version, rank 1: newer");
  EXPECT_EQ(thrown(2, on_every([](int rank) {
                     require<UnreadableError>(rank != 0, "mode");
                     require<ShapeError>(rank == 0, "a mistake");
                   })),
            "other, rank 1: a mistake");
  EXPECT_EQ(thrown(1, on_every([](int) { fail<DamagedError>("alone"); })), "damaged, alone");
}

TEST(OnRoot, ThrowsOnEveryRankWhatRankZeroThrew) {
  for (const int ranks : {1, 3}) {
    int calls = 0;
    const auto root = [&](const std::function<void()>& work) {
      return thrown(ranks, [&](Communicator& comm) {
        on_root(comm, [&] {
          ++calls;
          work();
        });
      });
    };
    EXPECT_EQ(root([] {}), "nothing");
    EXPECT_EQ(root([] { fail<UsageError>("no such {}", "key"); }), "usage, no such key");
    EXPECT_EQ(root([] { fail<TryAgainError>("in use"); }), "again, in use");
    EXPECT_EQ(root([] { fail<UnreadableError>("mode"); }), "unreadable, mode");
    EXPECT_EQ(root([] { throw std::runtime_error("a library's"); }), "other, a library's");
    EXPECT_EQ(root([] { fail<IoError>("{}", ""); }), "other, ");  // a failure without a word is one, too
    EXPECT_EQ(calls, 6);
  }
}

TEST(Together, NumbersAndTextsOfRanks) {
  constexpr int kRanks = 3;
  test::run_ranks(kRanks, [&](Communicator& comm) {
    const int rank = comm.rank();
    EXPECT_EQ(value_of_root(comm, 7 + rank), 7);
    EXPECT_TRUE(root_says(comm, rank == 0));
    EXPECT_FALSE(root_says(comm, rank != 0));
    EXPECT_EQ(largest_of_ranks(comm, -rank - 1), -1);
    EXPECT_EQ(first_rank_with(comm, rank >= 1), 1);
    EXPECT_EQ(first_rank_with(comm, rank == 0), 0);
    EXPECT_EQ(first_rank_with(comm, false), std::nullopt);
    const std::string own = std::string(idx(rank), 'x') + '\0';
    EXPECT_EQ(first_text(comm, rank == 0 ? "" : own), std::string("x\0", 2));
    EXPECT_EQ(first_text(comm, ""), "");
    EXPECT_EQ(broadcast_text(comm, own, 2), std::string("xx\0", 3));
    const std::vector<std::string> all = {std::string("\0", 1), std::string("x\0", 2), std::string("xx\0", 3)};
    EXPECT_EQ(gather_texts(comm, own), rank == 0 ? all : std::vector<std::string>());
    EXPECT_EQ(scatter_texts(comm, rank == 0 ? all : std::vector<std::string>()), own);
  });
}

}  // namespace
}  // namespace emox
