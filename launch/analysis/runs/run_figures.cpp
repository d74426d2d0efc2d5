#include "launch/analysis/runs/run_figures.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <utility>

#include "launch/config/recipe_file.h"
#include "model/modularity/student.h"
#include "model/transformer/parameter_count.h"
#include "runtime/core/idx.h"

namespace emox {
namespace {

constexpr double kNone = std::numeric_limits<double>::quiet_NaN();
constexpr std::int64_t kWarmUp = 2;

bool every(std::int64_t n, std::int64_t step) { return n > 0 && step % n == 0; }

/// Steps that nothing else was done beside, on the ranks of the last job.
std::vector<const StepRecord*> usual_steps(const RunHistory& run) {
  std::int64_t same_ranks_from = 0;
  for (std::size_t j = 1; j < run.jobs.size(); ++j)
    if (run.jobs[j].ranks != run.jobs[j - 1].ranks) same_ranks_from = run.jobs[j].from_step;
  std::vector<const StepRecord*> usual;
  for (const StepRecord& s : run.steps) {
    const bool begins = std::any_of(run.jobs.begin(), run.jobs.end(), [&](const JobRecord& job) {
      return s.step > job.from_step && s.step <= job.from_step + kWarmUp;
    });
    const bool more = every(run.recipe.checkpoint.every_steps, s.step) || every(run.recipe.eval.every_steps, s.step) ||
                      s.step == run.recipe.total_steps();
    if (!begins && !more && s.step > same_ranks_from) usual.push_back(&s);
  }
  return usual;
}

double median_of(const std::vector<const StepRecord*>& steps, double StepRecord::*figure) {
  std::vector<double> values;
  for (const StepRecord* s : steps) values.push_back(s->*figure);
  return median_interval(std::move(values)).value;
}

/// The recipe but for what a scaling study changes.
std::string without_ranks(Recipe r, bool batch) {
  r.run = {}, r.parallel = {}, r.train.threads = 0, r.checkpoint = {}, r.eval = {};
  r.train.micro_batch_sequences = 1;
  if (!batch) r.train.batch_sequences = 1;
  r.train.steps = 1, r.train.tokens = 0;
  return to_ini(r);
}

double mean_of(const std::vector<double>& x) {
  double sum = 0;
  for (const double v : x) sum += v;
  return x.empty() ? kNone : sum / static_cast<double>(x.size());
}
double variance_of(const std::vector<double>& x) {
  const double mean = mean_of(x);
  double sum = 0;
  for (const double v : x) sum += (v - mean) * (v - mean);
  return sum / static_cast<double>(x.size() - 1);
}

}  // namespace

MedianInterval median_interval(std::vector<double> values) {
  std::erase_if(values, [](double v) { return !std::isfinite(v); });
  const std::size_t n = values.size();
  if (n == 0) return {};
  std::sort(values.begin(), values.end());
  // The largest k for which at most 2.5 % of samples have fewer than k values below the median.
  std::size_t k = 0;
  if (n > 1000) {  // the binomial is a normal distribution by then
    k = idx(std::llround(std::floor(static_cast<double>(n) / 2 - 0.98 * std::sqrt(static_cast<double>(n)))));
  } else {
    double chance = std::pow(0.5, static_cast<double>(n));
    for (double below = chance; below <= 0.025; below += chance) {
      ++k;
      chance *= static_cast<double>(n - k + 1) / static_cast<double>(k);
    }
  }
  MedianInterval m;
  m.value = n % 2 == 1 ? values[n / 2] : (values[n / 2 - 1] + values[n / 2]) / 2;
  m.low = values[k == 0 ? 0 : k - 1], m.high = values[k == 0 ? n - 1 : n - k];
  m.count = n;
  return m;
}

RunFigures figures_of(const RunHistory& run) {
  const ModelConfig& model = run.recipe.model;
  const JobRecord& job = run.jobs.back();
  RunFigures f;
  f.name = run.recipe.run.name;
  f.ranks = job.ranks, f.nodes = (job.ranks - 1) / std::max(job.ranks_per_node, 1) + 1;
  f.steps = run.steps.back().step, f.of_steps = run.recipe.total_steps(), f.tokens = run.steps.back().tokens;
  f.tokens_per_step = run.recipe.tokens_per_step();
  f.parameters = static_cast<double>(count_parameters(model).active - 2 * model.vocab_size * model.d_model);
  f.finished = run.finished();
  double sum = 0;
  const std::size_t last = std::max<std::size_t>(1, run.steps.size() / 20);
  for (std::size_t i = run.steps.size() - last; i < run.steps.size(); ++i) sum += run.steps[i].ce;
  f.train_loss = sum / static_cast<double>(last);
  f.held_out = run.evaluations.empty() ? kNone : run.evaluations.back().loss;
  f.bits_per_byte = run.evaluations.empty() ? kNone : run.evaluations.back().bits_per_byte;
  const auto steps = usual_steps(run);
  f.counted = steps.size(), f.left_out = run.steps.size() - steps.size();
  std::vector<double> seconds, rates;
  for (const StepRecord* s : steps) seconds.push_back(s->step_s), rates.push_back(s->tokens_per_s);
  f.step_s = median_interval(seconds), f.tokens_per_s = median_interval(rates);
  for (const auto& [to, from] : {std::pair{&RunFigures::gemm_floor_fraction, &StepRecord::gemm_floor_fraction},
                                 {&RunFigures::load_max_over_mean, &StepRecord::load_max_over_mean},
                                 {&RunFigures::rows_sent_per_token, &StepRecord::rows_sent_per_token},
                                 {&RunFigures::nodes_per_token, &StepRecord::nodes_per_token},
                                 {&RunFigures::bytes_intra_node, &StepRecord::bytes_intra_node},
                                 {&RunFigures::bytes_inter_node, &StepRecord::bytes_inter_node},
                                 {&RunFigures::exposed_comm_s, &StepRecord::exposed_comm_s}})
    f.*to = median_of(steps, from);
  for (std::size_t p = 0; p < kPhases.size(); ++p) {
    std::vector<double> phase;
    for (const StepRecord* s : steps) phase.push_back(s->phase_s[p]);
    f.phase_s[p] = median_interval(phase).value;
  }
  std::vector<double> balance, efficiency, parallel;
  for (const StepRecord* s : steps) {
    balance.push_back(s->useful_s_mean / s->useful_s_max);
    efficiency.push_back(s->useful_s_max / s->step_s);
    parallel.push_back(s->useful_s_mean / s->step_s);
  }
  f.load_balance = median_interval(balance).value;
  f.communication_efficiency = median_interval(efficiency).value;
  f.parallel_efficiency = median_interval(parallel).value;
  f.restarts = run.jobs.size() - 1;
  for (const JobRecord& j : run.jobs) f.changes += j.changes.size();
  return f;
}

std::vector<Scaling> scaling_of(const std::vector<RunHistory>& runs, const std::vector<RunFigures>& figures) {
  std::vector<Scaling> all;
  for (const bool strong : {true, false}) {
    // By what must be equal; for weak scaling the share of each rank, too.
    std::map<std::string, std::map<int, std::vector<std::size_t>>> groups;
    for (std::size_t i = 0; i < runs.size(); ++i) {
      const std::int64_t batch = runs[i].recipe.train.batch_sequences;
      if (!strong && batch % figures[i].ranks != 0) continue;
      std::string key = without_ranks(runs[i].recipe, strong);
      if (!strong) key += std::to_string(batch / figures[i].ranks);
      groups[key][figures[i].ranks].push_back(i);
    }
    for (const auto& [key, by_ranks] : groups) {
      if (by_ranks.size() < 2) continue;
      Scaling s;
      s.strong = strong;
      for (const auto& [ranks, which] : by_ranks) {
        Scaling::Point p;
        p.ranks = ranks, p.nodes = figures[which.front()].nodes;
        std::vector<double> rates;
        for (const std::size_t i : which)
          rates.push_back(figures[i].tokens_per_s.value), p.runs.push_back(figures[i].name);
        p.tokens_per_s = which.size() == 1 ? figures[which.front()].tokens_per_s : median_interval(rates);
        s.points.push_back(std::move(p));
      }
      const Scaling::Point base = s.points.front();
      for (Scaling::Point& p : s.points) {
        const double more = static_cast<double>(p.ranks) / base.ranks;
        p.speed_up = p.tokens_per_s.value / base.tokens_per_s.value;
        p.efficiency = p.speed_up / more;
        p.low = p.tokens_per_s.low / base.tokens_per_s.high / more;
        p.high = p.tokens_per_s.high / base.tokens_per_s.low / more;
      }
      s.points.front().low = s.points.front().high = 1;  // against itself
      all.push_back(std::move(s));
    }
  }
  return all;
}

std::vector<SetDifference> compare_sets(const std::vector<RunFigures>& first, const std::vector<RunFigures>& second) {
  std::vector<SetDifference> all;
  const auto add = [&](const char* name, auto&& figure) {
    std::vector<double> a, b;
    for (const RunFigures& f : first)
      if (std::isfinite(figure(f))) a.push_back(figure(f));
    for (const RunFigures& f : second)
      if (std::isfinite(figure(f))) b.push_back(figure(f));
    if (a.empty() || b.empty()) return;
    SetDifference d{name, mean_of(a), mean_of(b), 0, std::numeric_limits<double>::infinity(), a.size(), b.size()};
    d.difference = d.first - d.second;
    if (a.size() > 1 && b.size() > 1) {
      const double va = variance_of(a) / static_cast<double>(a.size()),
                   vb = variance_of(b) / static_cast<double>(b.size());
      const double freedom =
          (va + vb) * (va + vb) /
          (va * va / static_cast<double>(a.size() - 1) + vb * vb / static_cast<double>(b.size() - 1));
      d.half = va + vb > 0
                   ? student_quantile(std::max<std::int64_t>(1, std::llround(std::floor(freedom)))) * std::sqrt(va + vb)
                   : 0;
    }
    all.push_back(d);
  };
  add("held-out loss, nats a token", [](const RunFigures& f) { return f.held_out; });
  add("training loss, nats a token", [](const RunFigures& f) { return f.train_loss; });
  add("tokens/s a rank", [](const RunFigures& f) { return f.tokens_per_s.value / f.ranks; });
  add("seconds of a step", [](const RunFigures& f) { return f.step_s.value; });
  return all;
}

}  // namespace emox
