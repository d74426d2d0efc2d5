#include "parallel/comm/together.h"

#include <cstring>
#include <exception>
#include <numeric>
#include <utility>

#include "parallel/comm/progress.h"
#include "runtime/core/error.h"
#include "runtime/core/idx.h"
#include "runtime/files/file_error.h"

namespace emox {
namespace {

Tensor bytes_tensor(std::int64_t n) { return Tensor({}, DType::U8, {n}); }

void copy_text(const TensorView& to, const std::string& text) {
  if (!text.empty()) std::memcpy(to.data<std::uint8_t>(), text.data(), text.size());
}

std::string text_at(const TensorView& from, std::int64_t offset, std::int64_t length) {
  if (length == 0) return "";
  return {reinterpret_cast<const char*>(from.data<std::uint8_t>()) + offset, idx(length)};
}

/// What is thrown again elsewhere, by its weight: damage comes first, so that it is said only where no rank failed
/// otherwise. Whoever passes over what is damaged must not miss another reason.
enum class Kind : std::uint8_t { None, Damaged, Unreadable, OtherVersion, TryAgain, Usage, Other };

struct Failure {
  Kind kind = Kind::None;
  std::string message;
};

Failure failure_of(const std::function<void()>& work) {
  try {
    work();
  } catch (const DamagedError& e) {
    return {Kind::Damaged, e.message()};
  } catch (const UnreadableError& e) {
    return {Kind::Unreadable, e.message()};
  } catch (const OtherVersionError& e) {
    return {Kind::OtherVersion, e.message()};
  } catch (const TryAgainError& e) {
    return {Kind::TryAgain, e.message()};
  } catch (const UsageError& e) {
    return {Kind::Usage, e.message()};
  } catch (const Error& e) {
    return {Kind::Other, e.message()};
  } catch (const std::exception& e) {
    return {Kind::Other, e.what()};
  }
  return {};
}

Failure failure_of_io(Communicator& comm, const std::function<void()>& work) {
  const IoPhase io(comm);
  return failure_of(work);
}

[[noreturn]] void throw_again(Kind kind, const std::string& message) {
  if (kind == Kind::Damaged) fail<DamagedError>("{}", message);
  if (kind == Kind::Unreadable) fail<UnreadableError>("{}", message);
  if (kind == Kind::OtherVersion) fail<OtherVersionError>("{}", message);
  if (kind == Kind::TryAgain) fail<TryAgainError>("{}", message);
  if (kind == Kind::Usage) fail<UsageError>("{}", message);
  fail<IoError>("{}", message);
}

}  // namespace

void run_together(Communicator& comm, const std::function<void()>& work) {
  const Failure failure = failure_of_io(comm, work);
  // The largest value belongs to the gravest kind, and among equals to the lowest rank; 0: nobody failed.
  const std::int64_t ranks = comm.size();
  const std::int64_t value = largest_of_ranks(
      comm, failure.kind == Kind::None ? 0 : static_cast<std::int64_t>(failure.kind) * ranks + ranks - 1 - comm.rank());
  if (value == 0) return;
  const auto kind = static_cast<Kind>(value / ranks);
  const int first = static_cast<int>(ranks - 1 - value % ranks);
  const std::string message = broadcast_text(comm, failure.message, first);
  throw_again(kind, ranks == 1 ? message : fmt::format("rank {}: {}", first, message));
}

void on_root(Communicator& comm, const std::function<void()>& work) {
  Failure failure;
  if (comm.rank() == 0) failure = failure_of_io(comm, work);
  const auto kind = static_cast<Kind>(value_of_root(comm, static_cast<std::int64_t>(failure.kind)));
  if (kind != Kind::None) throw_again(kind, broadcast_text(comm, failure.message));
}

std::int64_t value_of_root(Communicator& comm, std::int64_t value) {
  comm.broadcast(TensorView(&value, DType::I64, {1}), 0);
  return value;
}

std::int64_t largest_of_ranks(Communicator& comm, std::int64_t value) {
  comm.all_reduce(TensorView(&value, DType::I64, {1}), ReduceOp::Max);
  return value;
}

std::optional<int> first_rank_with(Communicator& comm, bool yes) {
  const std::int64_t value = largest_of_ranks(comm, yes ? comm.size() - comm.rank() : 0);
  if (value == 0) return std::nullopt;
  return comm.size() - static_cast<int>(value);
}

std::string first_text(Communicator& comm, const std::string& text) {
  const auto rank = first_rank_with(comm, !text.empty());
  return rank ? broadcast_text(comm, text, *rank) : std::string();
}

std::vector<std::string> gather_texts(Communicator& comm, const std::string& text) {
  const auto ranks = idx(comm.size());
  const Tensor length({}, DType::I64, {1});
  const Tensor lengths({}, DType::I64, {comm.size()});
  *length.view().data<std::int64_t>() = static_cast<std::int64_t>(text.size());
  comm.all_gather(lengths, length);
  const bool root = comm.rank() == 0;
  std::vector<std::int64_t> receive(ranks, 0), send(ranks, 0);
  send[0] = static_cast<std::int64_t>(text.size());
  if (root) receive.assign(lengths.view().data<std::int64_t>(), lengths.view().data<std::int64_t>() + ranks);
  const Tensor in = bytes_tensor(send[0]);
  const Tensor out = bytes_tensor(std::accumulate(receive.begin(), receive.end(), std::int64_t{0}));
  copy_text(in, text);
  comm.all_to_all_v(out, receive, in, send);
  std::vector<std::string> texts;
  if (!root) return texts;
  std::int64_t offset = 0;
  for (const std::int64_t n : receive) texts.push_back(text_at(out, std::exchange(offset, offset + n), n));
  return texts;
}

std::string scatter_texts(Communicator& comm, const std::vector<std::string>& texts) {
  const auto ranks = idx(comm.size());
  const bool root = comm.rank() == 0;
  std::vector<std::int64_t> send(ranks, 0), receive(ranks, 0), one(ranks, root ? 1 : 0), first(ranks, 0);
  first[0] = 1;
  std::string all;
  for (std::size_t r = 0; root && r < ranks; ++r) {
    send[r] = static_cast<std::int64_t>(texts[r].size());
    all += texts[r];
  }
  const Tensor length({}, DType::I64, {1});
  comm.all_to_all_v(length, first, TensorView(send.data(), DType::I64, {root ? comm.size() : 0}), one);
  receive[0] = *length.view().data<std::int64_t>();
  const Tensor in = bytes_tensor(static_cast<std::int64_t>(all.size())), out = bytes_tensor(receive[0]);
  copy_text(in, all);
  comm.all_to_all_v(out, receive, in, send);
  return text_at(out, 0, receive[0]);
}

std::string broadcast_text(Communicator& comm, const std::string& text, int root) {
  const Tensor length({}, DType::I64, {1});
  std::int64_t& n = *length.view().data<std::int64_t>();
  n = static_cast<std::int64_t>(text.size());
  comm.broadcast(length, root);
  if (n == 0) return "";
  const Tensor bytes = bytes_tensor(n);
  if (comm.rank() == root) copy_text(bytes, text);
  comm.broadcast(bytes, root);
  return text_at(bytes, 0, n);
}

}  // namespace emox
