// `emox bench rates`: what the machine that the ranks were started on does, as a hardware file for `emox plan`.
#pragma once

#include <filesystem>
#include <vector>

#include "launch/plan/hardware.h"
#include "launch/run/session.h"

namespace emox {

struct RatesBenchOptions {
  std::filesystem::path directory = ".";  ///< of the file system that checkpoints go to; 256 MiB are written there
  std::vector<std::int64_t> widths =
      {};  ///< of the models whose steps are timed; empty: 64 to 512, on a GPU 512 to 2048
  int steps = 5;
};

/// Steps of small models, each against the machine's own rates of that moment; exchanges between the ranks; a file
/// written and read. What only other machines show (links to other nodes, when there is one) is assumed, and says so;
/// `note` says when the machine was not quiet. Collective; the same on all ranks.
Hardware bench_rates(Session& session, const RatesBenchOptions& options);

}  // namespace emox
