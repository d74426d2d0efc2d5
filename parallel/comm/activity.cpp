#include "parallel/comm/activity.h"

#include <algorithm>
#include <utility>

namespace emox {
namespace {

template <std::size_t N>
void copy_text(char (&to)[N], std::string_view from) {
  const std::size_t n = std::min(from.size(), N - 1);
  std::copy_n(from.data(), n, to);
  to[n] = '\0';
}

}  // namespace

void ActivityLog::open(std::uint64_t comm_id, std::string_view name, std::vector<int> members) {
  const std::lock_guard lock(mutex_);
  Line& line = lines_[comm_id];
  copy_text(line.call.comm, name);
  line.members = std::move(members);
}

void ActivityLog::close(std::uint64_t comm_id) {
  const std::lock_guard lock(mutex_);
  lines_.erase(comm_id);
}

void ActivityLog::enter(std::uint64_t comm_id, std::string_view op, std::size_t bytes) {
  const std::lock_guard lock(mutex_);
  Line& line = lines_[comm_id];
  copy_text(line.call.op, op);
  ++line.call.sequence;
  line.call.bytes = static_cast<std::int64_t>(bytes);
  line.call.inside = 1;
  line.since = clock_;
}

void ActivityLog::leave(std::uint64_t comm_id) {
  const std::lock_guard lock(mutex_);
  Line& line = lines_[comm_id];
  line.call.inside = 0;
  line.since = clock_;
  last_.call = line.call;
  last_.since = clock_;
  io_sign_at_ = clock_;
}

void ActivityLog::progress() {
  const std::lock_guard lock(mutex_);
  progress_at_ = io_sign_at_ = clock_;
}

void ActivityLog::probe(std::uint64_t comm_id, std::function<std::string()> trouble) {
  const std::lock_guard lock(mutex_);
  lines_[comm_id].trouble = std::move(trouble);
}

std::string ActivityLog::trouble() const {
  const std::lock_guard lock(mutex_);
  for (const auto& [id, line] : lines_)
    if (line.trouble)
      if (std::string text = line.trouble(); !text.empty()) return std::string(line.call.comm) + ": " + text;
  return {};
}

void ActivityLog::note_io(bool begins) {
  const std::lock_guard lock(mutex_);
  io_phases_ += begins ? 1 : -1;
  io_sign_at_ = clock_;
  if (!begins) progress_at_ = clock_;
}

void ActivityLog::set_limit(double seconds) {
  const std::lock_guard lock(mutex_);
  limit_ = seconds;
}

double ActivityLog::limit_or(double otherwise) const {
  const std::lock_guard lock(mutex_);
  return limit_.value_or(otherwise);
}

void ActivityLog::advance(double seconds) {
  const std::lock_guard lock(mutex_);
  clock_ += seconds;
}

Activity ActivityLog::aged(const Line& line) const {
  Activity a = line.call;
  a.seconds = clock_ - line.since;
  return a;
}

RankStatus ActivityLog::status(std::uint64_t comm_id) const {
  const std::lock_guard lock(mutex_);
  RankStatus s;
  if (const auto found = lines_.find(comm_id); found != lines_.end()) s.asked = aged(found->second);
  s.latest = aged(last_);
  for (const auto& [id, line] : lines_) {
    if (line.call.inside != 0) s.latest = aged(line);
  }
  if (progress_at_) s.progress_s = clock_ - *progress_at_;
  if (io_phases_ > 0) s.io_s = clock_ - io_sign_at_;
  return s;
}

std::optional<Overdue> ActivityLog::overdue(double limit) const {
  const std::lock_guard lock(mutex_);
  std::optional<Overdue> worst;
  for (const auto& [id, line] : lines_) {
    const Activity a = aged(line);
    if (a.inside == 0 || a.seconds < limit) continue;
    if (!worst || a.seconds > worst->call.seconds) worst = Overdue{id, a, line.members};
  }
  return worst;
}

bool ActivityLog::still_inside(const Overdue& call) const {
  const std::lock_guard lock(mutex_);
  const auto found = lines_.find(call.comm_id);
  return found != lines_.end() && found->second.call.inside != 0 && found->second.call.sequence == call.call.sequence;
}

}  // namespace emox
