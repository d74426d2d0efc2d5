// Notes every collective in the rank's activity log.
#include <fmt/format.h>

#include <numeric>
#include <utility>

#include "parallel/comm/watchdog.h"
#include "runtime/core/idx.h"

namespace emox {
namespace {

/// The same number on all members, different for different communicators: made of what all members know.
std::uint64_t mix(std::uint64_t parent, std::uint64_t value) {
  std::uint64_t h = parent ^ (value + 0x9E3779B97F4A7C15ULL + (parent << 6) + (parent >> 2));
  h = (h ^ (h >> 30)) * 0xBF58476D1CE4E5B9ULL;
  h = (h ^ (h >> 27)) * 0x94D049BB133111EBULL;
  return h ^ (h >> 31);
}

std::uint64_t id_of(std::string_view name) {
  std::uint64_t h = 0;
  for (const char c : name) h = mix(h, static_cast<unsigned char>(c));
  return h;
}

class WatchedCalls final : public CollectiveObserver {
 public:
  WatchedCalls(ActivityLog& log, std::string name, std::uint64_t id, std::vector<int> members, int world_rank)
      : log_(log), name_(std::move(name)), id_(id), world_rank_(world_rank) {
    log_.open(id_, name_, std::move(members));
  }
  ~WatchedCalls() override { log_.close(id_); }
  WatchedCalls(const WatchedCalls&) = delete;
  WatchedCalls& operator=(const WatchedCalls&) = delete;

  void enter(std::string_view op, std::size_t bytes) override { log_.enter(id_, op, bytes); }
  void leave() noexcept override { log_.leave(id_); }
  void probe(const std::function<std::string()>& trouble) override { log_.probe(id_, trouble); }
  void note_progress() noexcept override { log_.progress(); }
  void note_io(bool begins) noexcept override { log_.note_io(begins); }
  void set_limit(double seconds) noexcept override { log_.set_limit(seconds); }
  std::shared_ptr<CollectiveObserver> part(Communicator& part, int color) override;

 private:
  ActivityLog& log_;
  std::string name_;
  std::uint64_t id_;
  std::int32_t world_rank_;
  int splits_ = 0;
};

std::shared_ptr<CollectiveObserver> WatchedCalls::part(Communicator& part, int color) {
  std::vector<int> members(idx(part.size()));
  std::int32_t own = world_rank_;
  part.all_gather(TensorView(members.data(), DType::I32, {part.size()}), TensorView(&own, DType::I32, {1}));
  const int nth = ++splits_;
  const std::uint64_t id = mix(mix(id_, static_cast<std::uint64_t>(nth)), static_cast<std::uint64_t>(color));
  std::string name = fmt::format("{}/{}.{}", name_, nth, color);
  return std::make_shared<WatchedCalls>(log_, std::move(name), id, std::move(members), own);
}

}  // namespace

void watch(Communicator& comm, ActivityLog& log, std::string name) {
  std::vector<int> members(idx(comm.size()));
  std::iota(members.begin(), members.end(), 0);
  const std::uint64_t id = id_of(name);
  comm.observe(std::make_shared<WatchedCalls>(log, std::move(name), id, std::move(members), comm.rank()));
}

}  // namespace emox
