#include "launch/run/same_on_ranks.h"

#include <fmt/format.h>

#include <algorithm>
#include <optional>

#include "parallel/comm/together.h"
#include "runtime/core/error.h"
#include "runtime/core/idx.h"

namespace emox {
namespace {

std::string line_at(const std::string& text, std::size_t begin) {
  constexpr std::size_t kShown = 200;
  if (begin >= text.size()) return "nothing more";
  return fmt::format("'{}'", text.substr(begin, std::min(text.find('\n', begin) - begin, kShown)));
}

/// The lines in which two texts, which are not equal, begin to differ.
std::string describe_difference(const std::string& here, const std::string& there) {
  const auto [a, b] = std::mismatch(here.begin(), here.end(), there.begin(), there.end());
  const auto same = idx(a - here.begin());
  const std::size_t end_of_line = same == 0 ? std::string::npos : here.rfind('\n', same - 1);
  const std::size_t begin = end_of_line == std::string::npos ? 0 : end_of_line + 1;
  return fmt::format("{} where rank 0 has {}", line_at(here, begin), line_at(there, begin));
}

}  // namespace

void require_same(Communicator& comm, const std::string& what, const std::string& text) {
  if (comm.size() == 1) return;
  const std::string first = broadcast_text(comm, text);
  const std::optional<int> rank = first_rank_with(comm, text != first);
  if (!rank) return;
  const std::string difference =
      broadcast_text(comm, comm.rank() == *rank ? describe_difference(text, first) : "", *rank);
  fail<UsageError>(
      "{} is not the same on all ranks: rank {} has {}. Every rank reads it for itself: do all nodes see the same "
      "files, "
      "and did all ranks get the same command?",
      what, *rank, difference);
}

void require_same_held_out(Communicator& comm, const HeldOutSet& set) {
  std::string text;
  for (const HeldOut& source : set.sources) text += fmt::format("{}: {}\n", source.label, digest(source.documents));
  for (const std::string& skipped : set.skipped) text += fmt::format("none of {}\n", skipped);
  require_same(comm, "the held-out text", text);
}

std::string digest(std::span<const std::vector<std::int32_t>> documents) {
  std::uint64_t hash = 14695981039346656037U;  // FNV-1a
  const auto add = [&](std::uint64_t value) { hash = (hash ^ value) * 1099511628211U; };
  std::size_t tokens = 0;
  for (const auto& document : documents) {
    add(document.size());
    for (const std::int32_t token : document) add(static_cast<std::uint32_t>(token));
    tokens += document.size();
  }
  return fmt::format("{} documents, {} tokens, {:016x}", documents.size(), tokens, hash);
}

}  // namespace emox
