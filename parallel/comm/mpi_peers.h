// How the watchdogs of MPI ranks ask each other: small messages on a communicator of their own, never blocking.
#pragma once

#include <deque>

#include "parallel/comm/mpi_support.h"
#include "parallel/comm/watchdog.h"

namespace emox {

class MpiPeers final : public WatchdogPeers {
 public:
  /// `comm`: a duplicate of the world that nobody else uses. `log`: what this rank answers from.
  MpiPeers(MPI_Comm comm, const ActivityLog& log);
  void answer() override;
  std::vector<std::optional<RankStatus>> ask(const std::vector<int>& ranks, std::uint64_t comm_id,
                                             double wait_s) override;
  int ranks() const override;
  void end_job(const std::string& report) override;
  /// Waits until all ranks say farewell, so that one that waits in vain still gets its answers. No time limit: a rank
  /// that computes for hours after another has finished is no hang.
  void farewell();

 private:
  struct Question {
    std::uint64_t comm_id;
    std::int64_t number;
  };
  struct Reply {
    std::int64_t number;
    RankStatus status;
  };
  struct Sent {
    std::vector<std::byte> bytes;
    MPI_Request request;
  };
  template <typename T>
  void send(const T& message, int to, int tag);
  template <typename T>
  bool receive(T& message, int tag, int& from);

  MPI_Comm comm_;
  const ActivityLog& log_;
  int rank_ = 0;
  std::int64_t questions_ = 0;
  std::deque<Sent> sent_;  // until MPI is done with them
};

}  // namespace emox
