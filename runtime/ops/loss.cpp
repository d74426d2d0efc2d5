#include "runtime/ops/loss.h"

#include "runtime/core/idx.h"
#include "runtime/cpu/loss_blocks.h"
#include "runtime/cuda/loss_blocks.h"
#include "runtime/ops/check.h"
#include "runtime/ops/dispatch.h"

namespace emox::ops {

std::size_t lm_head_loss_scratch(Device device, std::int64_t tokens, std::int64_t vocab) {
  const std::int64_t floats = device.type == DeviceType::Cpu ? cpu::loss_scratch_floats(tokens, vocab)
                                                             : cuda::loss_scratch_floats(tokens, vocab);
  return idx(floats) * sizeof(float);
}

void lm_head_loss(Context& ctx, const LmLossResult& out, const LmHead& head, TensorView scratch,
                  const LmLossOptions& options) {
  const auto& [x, weight, labels] = head;
  const auto& [sums, token_loss, dx, dweight] = out;
  expect_rank("lm_head_loss", "x", x, ctx.activations, 2);
  expect_rank("lm_head_loss", "weight", weight, ctx.activations, 2);
  expect("lm_head_loss", "weight", weight, ctx.activations, {weight.dim(0), x.dim(1)});
  expect("lm_head_loss", "sums", sums, DType::F64, {2});
  expect("lm_head_loss", "labels", labels, DType::I32, {x.dim(0)});
  expect_optional("lm_head_loss", "token_loss", token_loss, DType::F32, {x.dim(0)});
  expect_optional("lm_head_loss", "dx", dx, ctx.activations, x.shape());
  expect_optional("lm_head_loss", "dweight", dweight, DType::F32, weight.shape());
  require<ShapeError>(dx.null() == dweight.null() || x.numel() == 0,
                      "[lm_head_loss] dx and dweight are given together or not at all");
  const std::size_t need = lm_head_loss_scratch(ctx.device, x.dim(0), weight.dim(0));
  require<ShapeError>(scratch.bytes() >= need, "[lm_head_loss] scratch holds {} bytes, {} are needed", scratch.bytes(),
                      need);
  const double products = dx.null() ? 1 : 3;
  run<Op::lm_head_loss>(
      ctx,
      Work{.flops = 2.0 * products * static_cast<double>(x.numel()) * static_cast<double>(weight.dim(0)),
           .bytes = bytes_of(x, weight) * products},
      out, head, scratch, options);
}

}  // namespace emox::ops
