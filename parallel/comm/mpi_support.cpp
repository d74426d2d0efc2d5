#include "parallel/comm/mpi_support.h"

#include <algorithm>
#include <chrono>
#include <exception>
#include <string>

#include "runtime/core/error.h"
#include "runtime/core/idx.h"

namespace emox {
namespace {

std::string error_text(int code) {
  char text[MPI_MAX_ERROR_STRING] = {};
  int length = 0;
  if (MPI_Error_string(code, text, &length) != MPI_SUCCESS) return fmt::format("MPI error {}", code);
  return std::string(text, idx(length));
}

}  // namespace

void check_mpi(int code, const char* call, std::source_location where) {
  if (code != MPI_SUCCESS) [[unlikely]]
    throw CommError(fmt::format("{} failed: {}", call, error_text(code)), where);
}

bool mpi_finalized() noexcept {
  int finalized = 0;
  MPI_Finalized(&finalized);
  return finalized != 0;
}

MpiComm::~MpiComm() {
  // While an exception travels the other ranks are elsewhere and the job is about to end: freeing is collective, so
  // the communicator is left to MPI.
  if (comm_ == MPI_COMM_NULL || mpi_finalized() || std::uncaught_exceptions() > 0) return;
  MPI_Comm_free(&comm_);
}

MpiComm MpiComm::duplicate(MPI_Comm comm) {
  MPI_Comm copy = MPI_COMM_NULL;
  MPI_CHECK(MPI_Comm_dup(comm, &copy));
  return MpiComm(copy);
}

MpiComm MpiComm::split(MPI_Comm comm, int color, int key) {
  MPI_Comm part = MPI_COMM_NULL;
  MPI_CHECK(MPI_Comm_split(comm, color, key, &part));
  return MpiComm(part);
}

MpiComm MpiComm::shared_memory_part(MPI_Comm comm) {
  MPI_Comm part = MPI_COMM_NULL;
  MPI_CHECK(MPI_Comm_split_type(comm, MPI_COMM_TYPE_SHARED, 0, MPI_INFO_NULL, &part));
  return MpiComm(part);
}

int MpiComm::rank() const {
  int rank = 0;
  MPI_CHECK(MPI_Comm_rank(comm_, &rank));
  return rank;
}

int MpiComm::size() const {
  int size = 0;
  MPI_CHECK(MPI_Comm_size(comm_, &size));
  return size;
}

void MpiExchange::receive(void* to, std::size_t bytes, int from) {
  for (std::size_t done = 0; done < bytes; done += max_message_) {
    const int n = static_cast<int>(std::min(max_message_, bytes - done));
    requests_.push_back(MPI_REQUEST_NULL);
    pieces_.push_back({from, n, true});
    MPI_CHECK(MPI_Irecv(static_cast<std::byte*>(to) + done, n, MPI_BYTE, from, 0, comm_, &requests_.back()));
  }
}

void MpiExchange::send(const void* from, std::size_t bytes, int to) {
  for (std::size_t done = 0; done < bytes; done += max_message_) {
    const int n = static_cast<int>(std::min(max_message_, bytes - done));
    requests_.push_back(MPI_REQUEST_NULL);
    pieces_.push_back({to, n, false});
    MPI_CHECK(MPI_Isend(static_cast<const std::byte*>(from) + done, n, MPI_BYTE, to, 0, comm_, &requests_.back()));
  }
}

void MpiExchange::wait() {
  std::vector<MPI_Status> statuses(requests_.size());
  const int code = MPI_Waitall(static_cast<int>(requests_.size()), requests_.data(), statuses.data());
  if (code != MPI_SUCCESS && code != MPI_ERR_IN_STATUS) check_mpi(code, "MPI_Waitall");
  for (std::size_t i = 0; i < pieces_.size(); ++i) {
    // MPI fills the error field only when some message failed.
    if (code == MPI_SUCCESS) statuses[i].MPI_ERROR = MPI_SUCCESS;
    check_piece(pieces_[i], statuses[i]);
  }
  requests_.clear();
  pieces_.clear();
}

void MpiExchange::abandon() noexcept {
  if (mpi_finalized()) return;
  for (std::size_t i = 0; i < pieces_.size(); ++i)
    if (pieces_[i].receives && requests_[i] != MPI_REQUEST_NULL) MPI_Cancel(&requests_[i]);
  const auto until = std::chrono::steady_clock::now() + std::chrono::seconds(2);
  for (int done = 0; done == 0 && std::chrono::steady_clock::now() < until;)
    MPI_Testall(static_cast<int>(requests_.size()), requests_.data(), &done, MPI_STATUSES_IGNORE);
  requests_.clear();
  pieces_.clear();
}

void MpiExchange::check_piece(const Piece& piece, const MPI_Status& status) const {
  require<CommError>(status.MPI_ERROR == MPI_SUCCESS || status.MPI_ERROR == MPI_ERR_PENDING,
                     "a message of {} bytes {} rank {} failed: {}", piece.bytes,
                     piece.receives ? "expected from" : "sent to", piece.peer,
                     status.MPI_ERROR == MPI_SUCCESS ? "" : error_text(status.MPI_ERROR));
  if (!piece.receives || status.MPI_ERROR != MPI_SUCCESS) return;
  int got = 0;
  MPI_CHECK(MPI_Get_count(&status, MPI_BYTE, &got));
  require<CommError>(got == piece.bytes,
                     "rank {} sent a message of {} bytes where {} were expected: the ranks' row counts differ",
                     piece.peer, got, piece.bytes);
}

}  // namespace emox
