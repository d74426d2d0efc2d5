#include "launch/run/announce.h"

#include <fmt/format.h>

#include <string>

#include "launch/run/balance_group.h"
#include "runtime/core/accelerator.h"

namespace emox {
namespace {

double mib(std::size_t bytes) { return static_cast<double>(bytes) / 1048576; }

std::string free_on_device(const Context& ctx) {
  if (ctx.queue == nullptr) return {};
  const DeviceProperties p = cuda::accelerator()->properties(ctx.device.index);
  return fmt::format(" (host); {:.0f} of {:.0f} MiB of the GPU are free", mib(p.free), mib(p.memory));
}

}  // namespace

void announce(Session& session, const Announced& run) {
  const double millions = static_cast<double>(run.model.parameters().element_count()) / 1e6;
  Log& log = session.log();
  log.info(
      "{}: {:.2f} M parameters, {} rank(s) ({}) x {} thread(s), {} steps of {} tokens, {} GEMM {:.0f} GFLOP/s a rank "
      "on {}",
      run.recipe.run.name, millions, session.comm().size(), session.comm().transport(), session.ctx().threads,
      run.recipe.total_steps(), run.recipe.tokens_per_step(), name_of(session.ctx().activations),
      run.floor.rate() / 1e9, device_name(session.ctx()));
  const MeshLayout& mesh = run.sharding.mesh().layout();
  if (run.model.experts() != nullptr && session.comm().size() > 1) log.info("{}", mesh_line(run.recipe, mesh.nodes()));
  log.info("memory of a rank: weights and gradients {:.0f} MiB, optimizer {:.0f} MiB, activations {:.0f} MiB{}{}",
           mib(run.model.parameters().bytes()), mib(run.step.optimizer().state_bytes()),
           mib(run.step.activation_bytes()),
           run.save_bytes == 0 ? "" : fmt::format(", copy for saving {:.0f} MiB", mib(run.save_bytes)),
           free_on_device(session.ctx()));
  const auto epochs = run.loader.epochs(run.recipe.total_steps());
  for (std::size_t i = 0; i < epochs.size(); ++i)
    if (epochs[i] > 1.0)
      log.warn("source {} is read {:.2f} times in this run", run.loader.sources()[i].label, epochs[i]);
  if (const std::string groups = describe_balance_groups(run.recipe, session.comm().size()); !groups.empty())
    log.info("{}", groups);
}

}  // namespace emox
