// Rows travel beside the layers' own work: on a device, plans, packing and transfers have the communicator's queue, so
// that the compute queue goes on with the shared experts. On the CPU both are the caller.
#pragma once

#include "parallel/comm/communicator.h"
#include "runtime/core/context.h"
#include "runtime/telemetry/spans.h"

namespace emox {

/// The context in which rows of `comm` travel.
inline Context transfer_context(const Context& compute, const Communicator& comm) {
  Context transfer = compute;
  if (compute.queue != nullptr && comm.queue() != nullptr) transfer.queue = comm.queue();
  return transfer;
}

/// What is done in `transfer` from now on sees what `compute` was given so far.
inline void leave_compute(const Context& compute, const Context& transfer) {
  if (transfer.queue != compute.queue) transfer.queue->follow(*compute.queue);
}

/// What `compute` is given from now on sees what was done in `transfer`; its span is the time that compute waits.
inline void join_compute(const Context& compute, const Context& transfer) {
  if (transfer.queue == compute.queue) return;
  const Span span(compute, "comm.exposed");
  compute.queue->follow(*transfer.queue);
}

}  // namespace emox
