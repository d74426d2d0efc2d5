#include "parallel/checkpoint/host_pieces.h"

#include "runtime/core/idx.h"
#include "runtime/ops/basic.h"

namespace emox {

HostPieces::HostPieces(std::span<const CheckpointPiece> pieces) : host_(pieces.begin(), pieces.end()) {
  for (CheckpointPiece& p : host_) {
    const bool rounded = p.view.dtype() == DType::BF16;
    places_.push_back(rounded || p.view.device().type != DeviceType::Cpu ? p.view : TensorView{});
    if (places_.back().null()) continue;
    p.view = memory_.emplace_back(Device{}, rounded ? DType::F32 : p.view.dtype(), p.view.shape()).view();
  }
}

void HostPieces::deliver(Context& ctx) const {
  for (std::size_t i = 0; i < host_.size(); ++i) {
    const TensorView &place = places_[i], &host = host_[i].view;
    if (place.null()) continue;
    if (place.dtype() != DType::BF16) {
      ops::copy_from_host(ctx, place, host.raw());
      continue;
    }
    Context on_host;
    on_host.threads = ctx.threads;
    const Tensor low({}, DType::BF16, host.shape());
    ops::convert(on_host, low, host);
    ops::copy_from_host(ctx, place, low.view().raw());
  }
}

}  // namespace emox
