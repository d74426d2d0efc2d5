#include "launch/run/profile_steps.h"

#include <fmt/format.h>

#include <charconv>
#include <exception>
#include <string_view>
#include <system_error>

#include "runtime/core/error.h"

namespace emox {
namespace {

/// 0: no number.
std::int64_t step_of(std::string_view text) {
  std::int64_t step = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), step);
  return error == std::errc{} && end == text.data() + text.size() ? step : 0;
}

}  // namespace

StepRange parse_step_range(const std::string& option, const std::string& text) {
  const std::size_t colon = text.find(':');
  StepRange r;
  r.first = step_of(std::string_view(text).substr(0, colon));
  r.last = colon == std::string::npos ? r.first : step_of(std::string_view(text).substr(colon + 1));
  require<UsageError>(r.first >= 1 && r.last >= 1,
                      "{}={} is no range of steps: write {}=FIRST:LAST, counted from 1, for example {}=10:12", option,
                      text, option, option);
  require<UsageError>(r.first <= r.last, "{}={}: the first step comes after the last; write {}={}:{}", option, text,
                      option, r.last, r.first);
  return r;
}

StepProfile::StepProfile(Session& session, StepRange steps) : session_(session), steps_(steps) {
  require<UsageError>(steps.empty() || session.ctx().queue != nullptr,
                      "--profile-steps={}:{}: the profiler watches a GPU, and this run computes on the CPU ({}); leave "
                      "it out, or use --trace=FILE",
                      steps.first, steps.last, session.choice().why);
}

void StepProfile::check(std::int64_t first, std::int64_t last) const {
  require<UsageError>(steps_.empty() || (first <= steps_.first && steps_.last <= last),
                      "--profile-steps={}:{}: this job makes the steps {} to {}; give some of them", steps_.first,
                      steps_.last, first, last);
}

StepProfile::~StepProfile() {
  try {
    stop();
  } catch (const std::exception&) {  // something worse is being said
  }
}

void StepProfile::before(std::int64_t step) {
  if (step != steps_.first) return;
  synchronize(session_.ctx());  // the update of the step before is not theirs
  session_.ctx().queue->profile(true);
  on_ = true;
  session_.log().info("the profiler watches the steps {} to {}", steps_.first, steps_.last);
}

void StepProfile::after(std::int64_t step) {
  if (step == steps_.last) stop();
}

void StepProfile::stop() {
  if (!on_) return;
  on_ = false;
  synchronize(session_.ctx());
  session_.ctx().queue->profile(false);
}

}  // namespace emox
