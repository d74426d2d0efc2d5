// Which of a model's parameters this rank owns: dense ones are shared out over all ranks, experts over the ranks that
// hold the same ones (ZeRO stage 1; spec 4, design 4.6). An owner alone keeps moments, counts the gradient in the norm,
// updates, and writes and reads checkpoints.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "model/transformer/parameter_store.h"
#include "parallel/data_parallel/sharded_buffer.h"
#include "parallel/mesh/process_mesh.h"

namespace emox {

/// Elements [begin, end) of a flattened parameter, or of one of its moments, that this rank owns.
struct OwnedPart {
  std::string name;
  std::string role;  ///< "weight", "exp_avg", "exp_avg_sq"
  Shape shape;       ///< the whole array's
  std::int64_t begin = 0, end = 0;
  TensorView view;  ///< [end - begin]
};

class ParameterShards {
 public:
  struct Group {
    ParameterGroup group;
    ShardedBuffer shards;
  };

  /// `store` and `mesh` must outlive this object.
  ParameterShards(const ParameterStore& store, ProcessMesh& mesh);

  const std::vector<Group>& groups() const { return groups_; }
  /// When sums of gradients begin (ShardedBuffer::Reduce).
  void reduce(ShardedBuffer::Reduce when);
  /// These gradients are final in this step. Collective.
  void start_reduction(std::span<const ParameterRange> ready);
  /// Every owner gets the sums over ranks of its gradients; other elements are unspecified afterwards. Collective.
  void reduce_gradients();
  /// All gradients on every rank that holds the parameter, for inspection. Collective.
  void gather_gradients();
  /// The owners' weights on every rank that holds the parameter. Collective.
  void gather_weights();
  /// The same for a device, whose queue goes on meanwhile: the store waits for a stretch when it is asked for one of
  /// its weights. Stretches come in the order of the buffers, which is that of the layers. Collective.
  void start_gather_weights(DeviceQueue& compute);

  /// A piece of a parameter that one member of the group owns: elements [begin, end) of the group's flat buffers.
  struct Piece {
    const NamedParameter* parameter;
    std::size_t group;
    std::int64_t begin, end;
    std::int64_t state;  ///< as ShardedBuffer::Owned; 0 of another member's
    int owner;           ///< in the group
  };
  std::vector<Piece> owned() const;
  /// Those of all members, in the order of the buffer: for plans.
  std::vector<Piece> pieces(std::size_t group) const;
  std::vector<OwnedPart> owned_weights() const;

 private:
  std::vector<Piece> pieces_in(std::size_t group, std::span<const RowRange> ranges) const;
  const ParameterStore& store_;
  std::vector<Group> groups_;
};

}  // namespace emox
