#include "runtime/ops/fault.h"

#include "runtime/ops/basic.h"
#include "runtime/telemetry/log.h"

namespace emox::ops {

std::string text_of(const Fault& f) {
  return fmt::format("[{}] element {} of operand {} points outside", name_of(f.op), f.index, f.operand);
}

void report(Context& ctx, const Fault& fault, const std::string& message) {
  if (ctx.fault.null()) fail<ShapeError>("{}", message);
  if (ctx.log != nullptr) ctx.log->warn("{}", message);
  auto* word = ctx.fault.data<double>();
  if (*word == 0) *word = fault_word(fault);
}

FaultScope::FaultScope(Context& ctx, TensorView word) : ctx_(ctx), outer_(ctx.fault) {
  require<ShapeError>(word.dtype() == DType::F64 && word.numel() == 1, "a fault word is one f64, not {} of {}",
                      word.numel(), name_of(word.dtype()));
  zero(ctx, word);
  ctx.fault = word;
}

}  // namespace emox::ops
