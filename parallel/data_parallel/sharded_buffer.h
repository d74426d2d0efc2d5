// A flat buffer that a group of ranks holds in full, each rank being responsible for a part of every bucket (ZeRO stage
// 1, Rajbhandari et al. 2020): gradients are reduced to the owner, the owner updates, new weights are gathered.
#pragma once

#include <cstdint>
#include <vector>

#include "parallel/comm/communicator.h"
#include "runtime/core/tensor.h"

namespace emox {

/// A stretch that travels as one: member r of the group owns elements [cuts[r], cuts[r + 1]) of the flat buffer.
struct Bucket {
  std::vector<std::int64_t> cuts;  ///< [members + 1], rising
};

/// Elements [begin, end) in buckets of at most `bucket_elements`, each cut evenly, at multiples of 16 elements.
std::vector<Bucket> even_buckets(std::int64_t begin, std::int64_t end, int members, std::int64_t bucket_elements);

/// A tensor [experts, rows, columns] at `offset` of the flat buffer. With at least as many experts as members the owner
/// of an expert is the same in every tensor of as many experts, so that an expert's state lies whole on one rank: one
/// bucket, cut between experts. With fewer, every expert is cut by rows: a bucket each (design 4.8).
std::vector<Bucket> expert_buckets(std::int64_t offset, std::int64_t experts, std::int64_t rows, std::int64_t columns,
                                   int members);

class ShardedBuffer {
 public:
  /// A part of a bucket that this rank owns.
  struct Owned {
    std::int64_t begin, end;  ///< elements of the flat buffer
    std::int64_t state;       ///< where they begin among all that this rank owns: place in a buffer of owned_elements()
  };

  /// `group` must outlive this object; buckets in the same order on all members.
  ShardedBuffer(Communicator& group, std::vector<Bucket> buckets);

  const std::vector<Owned>& owned() const { return owned_; }
  std::int64_t owned_elements() const { return owned_elements_; }
  /// What this rank owns of flat[n] becomes the sum over the group; the rest is unspecified. Collective.
  void reduce_scatter(TensorView flat);
  /// Every member's part of flat[n] reaches all. Collective.
  void all_gather(TensorView flat);

 private:
  Communicator& group_;
  std::vector<Bucket> buckets_;
  std::vector<Owned> owned_;
  std::int64_t owned_elements_ = 0;
};

}  // namespace emox
