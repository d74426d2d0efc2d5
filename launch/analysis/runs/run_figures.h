// From the steps of runs to figures: medians with intervals, scaling over ranks, one set of runs against another.
#pragma once

#include <cstdint>
#include <limits>
#include <string>
#include <vector>

#include "launch/analysis/runs/run_history.h"

namespace emox {

/// A median, and the interval between order statistics that holds the true one with 95 % or more (binomial). Fewer
/// than six values have no such interval: it is then from the smallest to the largest.
struct MedianInterval {
  double value = std::numeric_limits<double>::quiet_NaN(), low = value, high = value;
  std::size_t count = 0;
};
MedianInterval median_interval(std::vector<double> values);  // NaNs are left out

struct RunFigures {
  std::string name;
  int ranks = 1, nodes = 1;
  std::int64_t steps = 0, of_steps = 0, tokens = 0, tokens_per_step = 0;
  double parameters = 0;  ///< active, without embeddings: the law's N
  bool finished = false;
  double train_loss = 0;                   ///< mean cross entropy of the last twentieth of the steps
  double held_out = 0, bits_per_byte = 0;  ///< of the last evaluation; NaN: none
  MedianInterval step_s, tokens_per_s;
  double gemm_floor_fraction = 0, load_max_over_mean = 0, rows_sent_per_token = 0, nodes_per_token = 0;  ///< medians
  double bytes_intra_node = 0, bytes_inter_node = 0, exposed_comm_s = 0;                                 ///< a step
  std::array<double, kPhases.size()> phase_s{};
  /// POP's: mean over max of the ranks' useful time, max of it over the step, and their product. NaN: not recorded.
  double load_balance = 0, communication_efficiency = 0, parallel_efficiency = 0;
  std::size_t counted = 0, left_out = 0;  ///< steps that the medians are of; those that are no usual ones
  std::size_t restarts = 0, changes = 0;
};
/// Of the last job's ranks. Left out: a job's first two steps, steps that saved or evaluated, and those before a change
/// of ranks.
RunFigures figures_of(const RunHistory& run);

/// Runs that differ in their ranks only (strong: the same batch; weak: the same share of it for each rank).
struct Scaling {
  bool strong = true;
  struct Point {
    int ranks = 1, nodes = 1;
    MedianInterval tokens_per_s;                             ///< of several runs: over them
    double speed_up = 1, efficiency = 1, low = 1, high = 1;  ///< against the smallest; the interval is the efficiency's
    std::vector<std::string> runs;
  };
  std::vector<Point> points;  ///< by rising ranks, two or more
};
std::vector<Scaling> scaling_of(const std::vector<RunHistory>& runs, const std::vector<RunFigures>& figures);

/// One set less the other: means over runs, and the 95 % interval of the difference (Welch).
struct SetDifference {
  std::string figure;
  double first = 0, second = 0, difference = 0, half = 0;  ///< half: infinite for sets of one run
  std::size_t first_runs = 0, second_runs = 0;
};
std::vector<SetDifference> compare_sets(const std::vector<RunFigures>& first, const std::vector<RunFigures>& second);

}  // namespace emox
