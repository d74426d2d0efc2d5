// What the MPI files share. Only parallel/comm/mpi_*.cpp may include this: it brings in <mpi.h>.
#pragma once

#include <mpi.h>

#include <cstddef>
#include <source_location>
#include <utility>
#include <vector>

namespace emox {

/// Throws CommError with the call's text and MPI's own words unless the call succeeded.
void check_mpi(int code, const char* call, std::source_location where = std::source_location::current());

#define MPI_CHECK(call) ::emox::check_mpi((call), #call)

bool mpi_finalized() noexcept;

/// Owns a communicator: a duplicate or a part, so that its messages meet nobody else's.
class MpiComm {
 public:
  MpiComm() = default;
  explicit MpiComm(MPI_Comm owned) : comm_(owned) {}
  MpiComm(MpiComm&& other) noexcept : comm_(std::exchange(other.comm_, MPI_COMM_NULL)) {}
  MpiComm& operator=(MpiComm&& other) noexcept {
    std::swap(comm_, other.comm_);
    return *this;
  }
  MpiComm(const MpiComm&) = delete;
  MpiComm& operator=(const MpiComm&) = delete;
  ~MpiComm();

  static MpiComm duplicate(MPI_Comm comm);
  static MpiComm split(MPI_Comm comm, int color, int key);
  /// The ranks of `comm` that share this rank's memory.
  static MpiComm shared_memory_part(MPI_Comm comm);

  MPI_Comm get() const { return comm_; }
  int rank() const;
  int size() const;

 private:
  MPI_Comm comm_ = MPI_COMM_NULL;
};

/// A set of messages under way, each cut into pieces that an int can count. Both sides know every size, so both cut
/// alike; wait() checks that each piece had the size that the receiver expected.
class MpiExchange {
 public:
  MpiExchange(MPI_Comm comm, std::size_t max_message) : comm_(comm), max_message_(max_message) {}
  void receive(void* to, std::size_t bytes, int from);
  void send(const void* from, std::size_t bytes, int to);
  /// Returns when all messages have arrived and left; the exchange can then be used again.
  void wait();
  /// Withdraws what no peer has answered and lets the rest end, for at most two seconds: the memory may go.
  void abandon() noexcept;

 private:
  struct Piece {
    int peer;
    int bytes;
    bool receives;
  };
  void check_piece(const Piece& piece, const MPI_Status& status) const;

  MPI_Comm comm_;
  std::size_t max_message_;
  std::vector<MPI_Request> requests_;
  std::vector<Piece> pieces_;
};

}  // namespace emox
