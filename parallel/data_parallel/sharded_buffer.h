// A flat buffer that a group of ranks holds in full, each rank being responsible for a part of it (ZeRO stage 1,
// Rajbhandari et al. 2020): gradients are reduced to the owner, the owner updates, new weights are gathered.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "parallel/comm/communicator.h"
#include "runtime/core/tensor.h"

namespace emox {

/// Elements [begin, end) cut once and evenly, at multiples of 16 elements: a rank has one stretch, so that a checkpoint
/// of many ranks has few pieces.
std::vector<RowRange> even_ranges(std::int64_t begin, std::int64_t end, int members);

/// The tensors [experts, ...] of one layer, as they lie in the flat buffer.
struct ExpertLayer {
  std::int64_t experts = 0;
  struct Tensor {
    std::int64_t offset, elements;  ///< of the first expert, and of each
  };
  std::vector<Tensor> tensors;  ///< in the order of the buffer
};

/// Whole experts, dealt over (layer, expert): the experts of a member differ by one at most over all layers, and lie
/// side by side in a layer. All tensors of an expert have one owner, so that its state is one rank's (design 4.8).
std::vector<RowRange> expert_ranges(std::span<const ExpertLayer> layers, int members);

class ShardedBuffer {
 public:
  /// A stretch that this rank owns.
  struct Owned {
    std::int64_t begin, end;  ///< elements of the flat buffer
    std::int64_t state;       ///< where they begin among all that this rank owns: place in a buffer of owned_elements()
  };

  /// `group` must outlive this object; the same ranges on all members.
  ShardedBuffer(Communicator& group, std::vector<RowRange> ranges);

  const std::vector<Owned>& owned() const { return owned_; }
  std::int64_t owned_elements() const { return owned_elements_; }
  const std::vector<RowRange>& ranges() const { return ranges_; }
  int rank() const { return group_.rank(); }
  /// When sums over the group begin: where the transport works beside the rank, a stretch that is final can travel
  /// while others are still computed. The bits are the same.
  enum class Reduce : std::uint8_t { AtEnd, WhenReady };
  void reduce(Reduce when) { when_ = when; }
  /// Nothing is added to flat[begin, end) any more in this step: its sum may begin. All members name the same
  /// stretches, which do not overlap, in the same order. Collective.
  void start_reduce(TensorView flat, std::int64_t begin, std::int64_t end);
  /// What this rank owns of flat[n] becomes the sum over the group, if it was started or not; the rest is unspecified.
  /// Collective.
  void finish_reduce(TensorView flat);
  /// Every member's part of flat[n] reaches all. Collective.
  void all_gather(TensorView flat);
  /// The same of flat[begin, end), which on a device is there when its queue has passed the event; elsewhere it is
  /// there at once, and there is no event. Collective.
  std::shared_ptr<DeviceEvent> start_all_gather(TensorView flat, std::int64_t begin, std::int64_t end);

 private:
  Communicator& group_;
  std::vector<RowRange> ranges_;
  std::vector<Owned> owned_;
  std::int64_t owned_elements_ = 0;
  Reduce when_ = Reduce::AtEnd;
  struct Elements {
    std::int64_t begin, end;
  };
  std::vector<Elements> started_;  ///< of this step
};

}  // namespace emox
