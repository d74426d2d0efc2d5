#include "parallel/expert/document_profiles.h"

#include <algorithm>
#include <utility>

#include "runtime/core/error.h"

namespace emox {

RecordedRun::RecordedRun(const std::filesystem::path& name) : files_(pool_trace_files(name)) {
  header_ = PoolTraceReader(files_.front()).header();
  for (const auto& file : files_)
    require<UsageError>(PoolTraceReader(file).header() == header_, "{} and {} are of different models",
                        files_.front().string(), file.string());
}

bool RecordedRun::next(RecordedMicroBatch& micro_batch) {
  micro_batch.clear();
  for (; file_ < files_.size(); ++file_, reader_.reset(), micro_batch.clear()) {
    if (!reader_) reader_ = std::make_unique<PoolTraceReader>(files_[file_]);
    while (auto record = reader_->next()) {
      require<UsageError>(record->layer == micro_batch.size() &&
                              (micro_batch.empty() || micro_batch.front().segments == record->segments),
                          "{}: layer {} stands where layer {} of the same documents belongs: is it a whole recording?",
                          files_[file_].string(), record->layer, micro_batch.size());
      micro_batch.push_back(std::move(*record));
      if (micro_batch.size() == header_.layers) return true;
    }
  }
  return false;
}

void add_document(DocumentProfiles& p, const RecordedMicroBatch& micro_batch, std::int64_t document,
                  std::int64_t least) {
  const auto& segments = micro_batch.front().segments;
  const std::int64_t begin = segments[idx(document)], end = segments[idx(document) + 1];
  if (end - begin < least) return;
  const std::int64_t k = static_cast<std::int64_t>(micro_batch.front().ids.size()) / segments.back();
  p.tokens.push_back(end - begin);
  const std::size_t at = p.picks.size();
  p.picks.resize(at + idx(p.size()), 0);
  for (std::size_t l = 0; l < micro_batch.size(); ++l)
    for (std::int64_t i = begin * k; i < end * k; ++i)
      ++p.picks[at + l * idx(p.experts) + idx(micro_batch[l].ids[idx(i)])];
}

}  // namespace emox
