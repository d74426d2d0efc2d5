// Ranks as threads of the test: N ranks without a launcher, visible to sanitizers.
#pragma once

#include <functional>

#include "parallel/comm/communicator.h"
#include "parallel/comm/thread_world.h"

namespace emox::test {

/// Runs body once a rank, each in a thread of its own (one OpenMP thread each), and returns when all are done. When a
/// rank throws, the others are ended too, and the first exception, the cause, is rethrown here. After timeout_s a hang
/// fails with a message instead of blocking the test.
void run_ranks(int n, const std::function<void(Communicator&)>& body, int timeout_s = 60);
void run_ranks(ThreadWorld& world, const std::function<void(Communicator&)>& body, int timeout_s = 60);

}  // namespace emox::test
