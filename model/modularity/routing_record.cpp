#include "model/modularity/routing_record.h"

#include <numeric>

#include "runtime/core/error.h"
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
  Documents& documents = counts_.at(static_cast<std::size_t>(layer));
  const std::size_t k = picks.size() / tokens_.size();
  for (std::size_t i = 0; i < picks.size(); ++i) {
    const RoutedToken& t = tokens_[i / k];
    ++documents[t.document][{t.token, picks[i]}];
  }
}

std::vector<DocumentPicks> RoutingRecord::gather(Communicator& comm, std::int64_t layer,
                                                 const std::vector<std::int32_t>& domains) const {
  std::vector<std::int32_t> mine;
  for (const auto& [document, cells] : counts_.at(static_cast<std::size_t>(layer)))
    for (const auto& [cell, count] : cells)
      for (const std::int32_t value : {document, cell.first, cell.second, count}) mine.push_back(value);
  std::int64_t rows = static_cast<std::int64_t>(mine.size()) / kColumns;

  const auto ranks = static_cast<std::size_t>(comm.size());
  std::vector<std::int64_t> rows_of(ranks), send(ranks, 0), receive(ranks, 0);
  comm.all_gather(TensorView(rows_of.data(), DType::I64, {comm.size()}), TensorView(&rows, DType::I64, {1}));
  send[0] = rows;
  const bool root = comm.rank() == 0;
  if (root) receive = rows_of;
  const std::int64_t total = std::accumulate(receive.begin(), receive.end(), std::int64_t{0});
  std::vector<std::int32_t> all(static_cast<std::size_t>(total * kColumns));
  comm.all_to_all_v(TensorView(all.data(), DType::I32, {total, kColumns}), receive,
                    TensorView(mine.data(), DType::I32, {rows, kColumns}), send);

  std::vector<DocumentPicks> documents;
  if (!root) return documents;
  for (const std::int32_t domain : domains) documents.push_back({domain, {}});
  for (auto row = all.begin(); row != all.end(); row += kColumns)
    documents.at(static_cast<std::size_t>(row[0])).picks.push_back({row[1], row[2], row[3]});
  return documents;
}

}  // namespace emox
