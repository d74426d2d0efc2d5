#include "parallel/checkpoint/agreement.h"

#include <algorithm>
#include <cstring>
#include <exception>
#include <optional>

#include "runtime/core/error.h"

namespace emox {
namespace {

Tensor bytes_tensor(std::int64_t n) { return Tensor({}, DType::U8, {n}); }

void copy_text(const TensorView& to, const std::string& text) {
  if (!text.empty()) std::memcpy(to.data<std::uint8_t>(), text.data(), text.size());
}

std::string text_at(const TensorView& from, std::int64_t offset, std::int64_t length) {
  return {reinterpret_cast<const char*>(from.data<std::uint8_t>()) + offset, static_cast<std::size_t>(length)};
}

std::optional<std::string> failure_of(const std::function<void()>& work) {
  try {
    work();
  } catch (const Error& e) {
    return e.message();
  } catch (const std::exception& e) {
    return std::string(e.what());
  }
  return std::nullopt;
}

}  // namespace

void run_together(Communicator& comm, const std::function<void()>& work) {
  const std::optional<std::string> failure = failure_of(work);
  // The largest value belongs to the lowest failed rank; 0: nobody failed.
  const Tensor flag({}, DType::I64, {1});
  std::int64_t& value = *flag.view().data<std::int64_t>();
  value = failure ? comm.size() - comm.rank() : 0;
  comm.all_reduce(flag, ReduceOp::Max);
  if (value == 0) return;
  const int first = comm.size() - static_cast<int>(value);
  const std::string message = broadcast_text(comm, failure.value_or(""), first);
  if (comm.size() == 1) fail<IoError>("{}", message);
  fail<IoError>("rank {}: {}", first, message);
}

std::vector<std::string> gather_texts(Communicator& comm, const std::string& mine) {
  const Tensor length({}, DType::I64, {1});
  const Tensor lengths({}, DType::I64, {comm.size()});
  *length.view().data<std::int64_t>() = static_cast<std::int64_t>(mine.size());
  comm.all_gather(lengths, length);
  const std::int64_t* n = lengths.view().data<std::int64_t>();
  // all_gather moves equal blocks, so every text is padded to the longest.
  const std::int64_t longest = std::max<std::int64_t>(1, *std::max_element(n, n + comm.size()));
  const Tensor in = bytes_tensor(longest);
  const Tensor out = bytes_tensor(longest * comm.size());
  copy_text(in, mine);
  comm.all_gather(out, in);
  std::vector<std::string> texts;
  for (int r = 0; r < comm.size(); ++r) texts.push_back(text_at(out, r * longest, n[r]));
  return texts;
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
