#include "launch/run/progress.h"

#include <fmt/format.h>
#include <unistd.h>

#include <cmath>
#include <cstdio>
#include <utility>

namespace emox {
namespace {
constexpr double kPlainInterval = 5;  // seconds between lines of a log
}

std::string format_duration(double seconds) {
  const auto s = static_cast<std::int64_t>(std::llround(seconds));
  if (s >= 172800) return fmt::format("{} d {} h", s / 86400, s % 86400 / 3600);
  if (s >= 3600) return fmt::format("{} h {:02} min", s / 3600, s % 3600 / 60);
  if (s >= 60) return fmt::format("{} min {:02} s", s / 60, s % 60);
  return fmt::format("{} s", s);
}

ProgressLine::ProgressLine(bool enabled) : enabled_(enabled), terminal_(isatty(STDERR_FILENO) == 1) {}

bool ProgressLine::due() const {
  return enabled_ && (terminal_ || last_shown_ == Clock::time_point::min() ||
                      std::chrono::duration<double>(Clock::now() - last_shown_).count() >= kPlainInterval);
}

void ProgressLine::show(const std::string& text) {
  if (!enabled_) return;
  last_shown_ = Clock::now();
  std::fprintf(stderr, terminal_ ? "\r\033[K%s" : "%s\n", text.c_str());
  std::fflush(stderr);
  open_ = terminal_;
}

void ProgressLine::finish() {
  if (open_) std::fputc('\n', stderr);
  open_ = false;
}

EvaluationProgress::EvaluationProgress(std::string what, bool enabled)
    : what_(std::move(what)), line_(enabled), start_(std::chrono::steady_clock::now()) {}

void EvaluationProgress::show(std::int64_t done, std::int64_t of) {
  const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count();
  if (done == 0 || done == of || seconds < kPlainInterval || !line_.due()) return;
  line_.show(fmt::format("{}: {:.0f} % of the held-out text, left {}", what_,
                         100.0 * static_cast<double>(done) / static_cast<double>(of),
                         format_duration(seconds * static_cast<double>(of - done) / static_cast<double>(done))));
}

Progress::Progress(std::int64_t last_step, bool enabled, RunOfMany among)
    : last_step_(last_step), among_(std::move(among)), line_(enabled) {}

void Progress::show(std::int64_t step, const StepMetrics& m, double learning_rate, double tokens_per_s, double step_s,
                    double gemm_floor_fraction) {
  mean_step_s_ = mean_step_s_ == 0 ? step_s : 0.9 * mean_step_s_ + 0.1 * step_s;
  if (!line_.due() && step != last_step_) return;
  // Only where rows travel: how far, and how unevenly.
  const DispatchMetrics& d = m.dispatch;
  const std::string dispatch =
      d.rows_sent_per_token > 0 ? fmt::format("  {:.2f} ranks/token  {:.1f} MiB sent  load {:.2f}", d.ranks_per_token,
                                              (d.bytes_intra_node + d.bytes_inter_node) / 1048576, d.rows_max_over_mean)
                                : "";
  line_.show(fmt::format(
      "{}step {}/{}  loss {:.4f}  ce {:.4f}  norm {:.3f}  lr {:.2e}  {:.0f} tok/s  {:.0f} % of GEMM{}  left {}{}",
      among_.label.empty() ? "" : among_.label + "  ", step, last_step_, m.loss(), m.ce, m.grad_norm, learning_rate,
      tokens_per_s, 100 * gemm_floor_fraction, dispatch,
      format_duration(static_cast<double>(last_step_ - step) * mean_step_s_),
      among_.later_steps > 0
          ? fmt::format(", {} for all",
                        format_duration(static_cast<double>(last_step_ - step + among_.later_steps) * mean_step_s_))
          : ""));
}

}  // namespace emox
