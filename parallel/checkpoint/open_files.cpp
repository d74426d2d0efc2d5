#include "parallel/checkpoint/open_files.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <numeric>
#include <tuple>

#include "parallel/checkpoint/checksum.h"
#include "parallel/comm/together.h"
#include "runtime/core/error.h"

namespace emox {
namespace {

constexpr std::size_t kMaxOpen = 4;

}  // namespace

void OpenFiles::read(const ManifestTensor& entry, const ArraySlice& slice) {
  auto at = std::find_if(open_.begin(), open_.end(), [&](const Open& o) { return o.name == entry.file; });
  if (at == open_.end()) {
    if (open_.size() == kMaxOpen) open_.pop_back();
    open_.push_front({entry.file, std::unique_ptr<Hdf5File>(new Hdf5File(Hdf5File::open(checkpoint_ / entry.file)))});
  } else {
    open_.splice(open_.begin(), open_, at);
  }
  open_.front().file->read(entry, std::span(&slice, 1));
}

void OpenFiles::read_whole(const ManifestTensor& entry, const Block& block,
                           const std::function<void(const TensorView&)>& use) {
  Checksum checksum;
  std::int64_t at = entry.begin;
  // Once at least: a dataset without elements must be there as well.
  do {
    const TensorView view = block.elements(entry.dtype, std::min(entry.end - at, block.capacity(entry.dtype)));
    read(entry, {at, view});
    checksum.update(view.raw(), view.bytes());
    use(view);
    at += view.numel();
  } while (at < entry.end);
  const std::string got = checksum.hex();
  require<IoError>(got == entry.checksum, "{} in {} is damaged: checksum {}, the manifest says {}", entry.dataset,
                   (checkpoint_ / entry.file).string(), got, entry.checksum);
}

std::pair<std::size_t, std::size_t> share_of(std::span<const std::int64_t> bytes, int rank, int size) {
  // By the middle of each item, so that one that lies across a border goes to the rank with more of it.
  const double total = static_cast<double>(std::accumulate(bytes.begin(), bytes.end(), std::int64_t{0}));
  const auto border = [&](int r) {
    if (r == size) return bytes.size();
    std::int64_t before = 0;
    std::size_t i = 0;
    for (; i < bytes.size(); before += bytes[i++])
      if (static_cast<double>(before) + 0.5 * static_cast<double>(bytes[i]) >= total * r / size) break;
    return r == 0 ? std::size_t{0} : i;
  };
  return {border(rank), border(rank + 1)};
}

/// Datasets in an order in which a rank's share lies in few files.
std::vector<const ManifestTensor*> by_file(std::vector<const ManifestTensor*> datasets) {
  const auto key = [](const ManifestTensor* t) { return std::tie(t->file, t->name, t->role, t->begin); };
  std::sort(datasets.begin(), datasets.end(), [&](const auto* a, const auto* b) { return key(a) < key(b); });
  return datasets;
}

std::pair<std::size_t, std::size_t> share_of_datasets(const std::vector<const ManifestTensor*>& datasets,
                                                      const Communicator& comm) {
  constexpr std::int64_t kOpening = 4096;  // finding a dataset costs about as much as reading this
  std::vector<std::int64_t> bytes;
  bytes.reserve(datasets.size());
  for (const ManifestTensor* t : datasets) bytes.push_back(bytes_of(*t) + kOpening);
  return share_of(bytes, comm.rank(), comm.size());
}

std::map<std::size_t, std::string> join_messages(Communicator& comm,
                                                 const std::map<std::size_t, std::string>& messages) {
  using nlohmann::json;
  json list = json::array();
  for (const auto& [number, message] : messages) list.push_back({number, message});
  // Paths may hold any bytes.
  const auto text = [](const json& j) { return j.dump(-1, ' ', false, json::error_handler_t::replace); };
  json all = json::array();
  for (const std::string& part : gather_texts(comm, text(list)))
    for (const json& entry : json::parse(part)) all.push_back(entry);
  std::map<std::size_t, std::string> joined;
  for (const json& entry : json::parse(broadcast_text(comm, text(all))))
    joined.emplace(entry.at(0).get<std::size_t>(), entry.at(1).get<std::string>());
  return joined;
}

}  // namespace emox
