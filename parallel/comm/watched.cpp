// The decorator that notes every collective in the rank's activity log.
#include <fmt/format.h>

#include <utility>

#include "parallel/comm/progress.h"
#include "parallel/comm/watchdog.h"

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

class WatchedCommunicator final : public Communicator, public WatchedRank {
 public:
  WatchedCommunicator(std::unique_ptr<Communicator> inner, ActivityLog& log, std::string name, std::uint64_t id,
                      std::vector<int> members)
      : inner_(std::move(inner)), log_(log), name_(std::move(name)), id_(id), members_(std::move(members)) {
    log_.open(id_, name_, members_);
  }
  ~WatchedCommunicator() override { log_.close(id_); }

  int rank() const override { return inner_->rank(); }
  int size() const override { return inner_->size(); }
  const std::vector<int>& nodes() const override { return inner_->nodes(); }
  std::string_view transport() const override { return inner_->transport(); }
  void note_progress() noexcept override { log_.progress(); }
  void note_io(bool begins) noexcept override { log_.note_io(begins); }

 private:
  void do_all_reduce(TensorView x, ReduceOp op) override {
    const Inside inside(*this, "all_reduce", x.bytes());
    inner_->all_reduce(x, op);
  }
  void do_all_gather(TensorView out, TensorView in) override {
    const Inside inside(*this, "all_gather", in.bytes());
    inner_->all_gather(out, in);
  }
  void do_all_gather_v(TensorView x, std::span<const std::int64_t> cuts) override {
    const Inside inside(*this, "all_gather_v", x.bytes());
    inner_->all_gather_v(x, cuts);
  }
  void do_reduce_scatter(TensorView x, std::span<const std::int64_t> cuts) override {
    const Inside inside(*this, "reduce_scatter", x.bytes());
    inner_->reduce_scatter(x, cuts);
  }
  void do_broadcast(TensorView x, int root) override {
    const Inside inside(*this, "broadcast", x.bytes());
    inner_->broadcast(x, root);
  }
  // Starting waits for nobody; a rank that works between the halves is outside any collective.
  void do_all_to_all_v_start(const RowExchange& e) override {
    inner_->all_to_all_v_start(e.out, e.recv_rows, e.in, e.send_rows);
  }
  void do_all_to_all_v_finish(const RowExchange& e) override {
    const Inside inside(*this, "all_to_all_v", e.in.bytes());
    inner_->all_to_all_v_finish();
  }
  void do_all_to_all_v_abandon() noexcept override { inner_->all_to_all_v_abandon(); }
  void do_barrier() override {
    const Inside inside(*this, "barrier", 0);
    inner_->barrier();
  }
  std::unique_ptr<Communicator> do_split(int color, int key) override;

  class Inside {
   public:
    Inside(WatchedCommunicator& comm, std::string_view op, std::size_t bytes) : comm_(comm) {
      comm_.log_.enter(comm_.id_, op, bytes);
    }
    ~Inside() { comm_.log_.leave(comm_.id_); }
    Inside(const Inside&) = delete;
    Inside& operator=(const Inside&) = delete;

   private:
    WatchedCommunicator& comm_;
  };

  std::unique_ptr<Communicator> inner_;
  ActivityLog& log_;
  std::string name_;
  std::uint64_t id_;
  std::vector<int> members_;  // world ranks, in this communicator's rank order
  int splits_ = 0;
};

std::unique_ptr<Communicator> WatchedCommunicator::do_split(int color, int key) {
  const Inside inside(*this, "split", 0);
  std::unique_ptr<Communicator> part = inner_->split(color, key);
  std::vector<int> members(static_cast<std::size_t>(part->size()));
  std::int32_t mine = members_[static_cast<std::size_t>(rank())];
  part->all_gather(TensorView(members.data(), DType::I32, {part->size()}), TensorView(&mine, DType::I32, {1}));
  const int nth = ++splits_;
  const std::uint64_t id = mix(mix(id_, static_cast<std::uint64_t>(nth)), static_cast<std::uint64_t>(color));
  std::string name = fmt::format("{}/{}.{}", name_, nth, color);
  return std::make_unique<WatchedCommunicator>(std::move(part), log_, std::move(name), id, std::move(members));
}

}  // namespace

std::unique_ptr<Communicator> make_watched(std::unique_ptr<Communicator> inner, ActivityLog& log, std::string name) {
  std::vector<int> members(static_cast<std::size_t>(inner->size()));
  for (int r = 0; r < inner->size(); ++r) members[static_cast<std::size_t>(r)] = r;
  const std::uint64_t id = id_of(name);
  return std::make_unique<WatchedCommunicator>(std::move(inner), log, std::move(name), id, std::move(members));
}

}  // namespace emox
