#include "model/modularity/routing_record.h"

#include <array>
#include <cstring>
#include <string>

#include "parallel/comm/together.h"
#include "runtime/core/error.h"
#include "runtime/core/idx.h"
#include "runtime/ops/basic.h"

namespace emox {
namespace {

constexpr std::int64_t kColumns = 4;  // document, token, expert, count

}  // namespace

void RoutingRecord::add(Context& ctx, std::int64_t layer, TensorView ids) {
  require<ShapeError>(ids.dim(0) == static_cast<std::int64_t>(tokens_.size()),
                      "routing record: layer {} routes {} tokens, {} were expected", layer, ids.dim(0), tokens_.size());
  if (tokens_.empty()) return;
  const auto picks = ops::to_host<std::int32_t>(ctx, ids);
  Documents& documents = counts_.at(idx(layer));
  const std::size_t k = picks.size() / tokens_.size();
  for (std::size_t i = 0; i < picks.size(); ++i) {
    const RoutedToken& t = tokens_[i / k];
    ++documents[t.document][{t.token, picks[i]}];
  }
}

std::vector<DocumentPicks> RoutingRecord::gather(Communicator& comm, std::int64_t layer,
                                                 const std::vector<std::int32_t>& domains) const {
  std::vector<std::int32_t> own;
  for (const auto& [document, cells] : counts_.at(idx(layer)))
    for (const auto& [cell, count] : cells)
      for (const std::int32_t value : {document, cell.first, cell.second, count}) own.push_back(value);
  const std::vector<std::string> rows_of_ranks =
      gather_texts(comm, {reinterpret_cast<const char*>(own.data()), own.size() * sizeof(std::int32_t)});

  std::vector<DocumentPicks> documents;
  if (comm.rank() != 0) return documents;
  std::vector<std::map<Cell, std::int32_t>> counts(domains.size());  // a document may have been routed on several ranks
  for (const std::string& rows : rows_of_ranks)
    for (std::size_t at = 0; at < rows.size(); at += sizeof(std::int32_t) * kColumns) {
      std::array<std::int32_t, kColumns> row{};
      std::memcpy(row.data(), rows.data() + at, sizeof row);
      counts.at(idx(row[0]))[{row[1], row[2]}] += row[3];
    }
  for (std::size_t i = 0; i < domains.size(); ++i) {
    documents.push_back({domains[i], {}});
    for (const auto& [cell, count] : counts[i]) documents.back().picks.push_back({cell.first, cell.second, count});
  }
  return documents;
}

}  // namespace emox
