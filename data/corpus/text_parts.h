// What `emox corpus --text` keeps while it reads: hashes, progress, the held-out documents, the training file.
#pragma once

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <iterator>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "data/corpus/assemble.h"
#include "data/corpus/text.h"
#include "data/corpus/text_corpus.h"
#include "data/format/npy_stream.h"
#include "data/format/token_file.h"
#include "data/loader/heldout.h"
#include "data/tokenize/tokenizer.h"
#include "runtime/core/error.h"
#include "runtime/telemetry/log.h"

namespace emox {

/// A set of 64-bit hashes in flat memory.
class HashSet {
 public:
  /// False if it was there.
  bool insert(std::uint64_t hash) {
    hash = std::max<std::uint64_t>(hash, 1);  // 0 marks an empty slot
    if (10 * (count_ + 1) > 7 * slots_.size()) grow();
    std::uint64_t& slot = place(hash);
    if (slot == hash) return false;
    slot = hash;
    ++count_;
    return true;
  }

 private:
  std::uint64_t& place(std::uint64_t hash) {
    std::size_t at = hash & (slots_.size() - 1);
    while (slots_[at] != 0 && slots_[at] != hash) at = (at + 1) & (slots_.size() - 1);
    return slots_[at];
  }
  void grow() {
    std::vector<std::uint64_t> old(2 * slots_.size());
    old.swap(slots_);
    for (const std::uint64_t hash : old)
      if (hash != 0) place(hash) = hash;
  }
  std::vector<std::uint64_t> slots_ = std::vector<std::uint64_t>(1 << 10);
  std::size_t count_ = 0;
};

/// Says every ten seconds how far it is.
class Progress {
 public:
  Progress(const char* what, std::int64_t total, Log& log) : what_(what), total_(total), log_(log) {}
  void at(std::int64_t done) {
    const double seconds = since(start_);
    if (since(said_) < 10 || done <= 0 || total_ <= 0) return;
    said_ = std::chrono::steady_clock::now();
    const double part = std::min(1.0, static_cast<double>(done) / static_cast<double>(total_));
    log_.info("{}: {:.0f} % of {:.1f} MB, {:.1f} MB/s, about {:.0f} s left", what_, 100 * part,
              1e-6 * static_cast<double>(total_), 1e-6 * static_cast<double>(done) / seconds,
              seconds / part * (1 - part));
  }

 private:
  using Time = std::chrono::steady_clock::time_point;
  static double since(Time t) { return std::chrono::duration<double>(std::chrono::steady_clock::now() - t).count(); }
  const char* what_;
  std::int64_t total_;
  Log& log_;
  Time start_ = std::chrono::steady_clock::now(), said_ = start_;
};

/// The documents of one held-out part, as many as there is room for, first in the pseudo-random order.
class HeldOutPart {
 public:
  /// How many documents are left out for it, itself among them if there is no room.
  std::int64_t add(Document document) {
    const auto size = static_cast<std::int64_t>(document.text.size());
    if (size > kMaxHeldOutDocument) return 1;
    const std::uint64_t key = order_hash(document.text);
    bytes_ += size;
    documents_.emplace(key, std::move(document));
    std::int64_t left_out = 0;
    for (; bytes_ > kMaxHeldOutBytes; ++left_out) {
      const auto last = std::prev(documents_.end());
      bytes_ -= static_cast<std::int64_t>(last->second.text.size());
      documents_.erase(last);
    }
    return left_out;
  }
  std::vector<Document> take() {
    std::vector<Document> all;
    for (auto& [key, document] : documents_) all.push_back(std::move(document));
    return all;
  }

 private:
  std::multimap<std::uint64_t, Document> documents_;
  std::int64_t bytes_ = 0;
};

/// train.npy and its indices, and the names of the sources of all parts.
class TrainingFile {
 public:
  explicit TrainingFile(const std::filesystem::path& directory)
      : names_path_(directory / kFileNames),
        tokens_(directory / "train.npy"),
        offsets_(document_index_path(directory / "train.npy")),
        sources_(document_files_path(directory / "train.npy")),
        names_(std::fopen(names_path_.c_str(), "wbe"), std::fclose) {
    require<IoError>(names_ != nullptr, "cannot create {}", names_path_.string());
    offsets_.append(0);
  }
  /// The number of a new source.
  std::size_t name(const std::string& text) {
    const std::string line = printable(text) + "\n";
    check(std::fwrite(line.data(), 1, line.size(), names_.get()) == line.size());
    return count_++;
  }
  void add(const Document& document) {
    for (const char c : document.text) tokens_.append(static_cast<unsigned char>(c));
    tokens_.append(static_cast<std::uint16_t>(kByteEos));
    offsets_.append(tokens_.count());
    sources_.append(static_cast<std::int64_t>(document.group));
  }
  void finish() {
    tokens_.finish();
    offsets_.finish();
    sources_.finish();
    check(std::fclose(names_.release()) == 0);
  }

 private:
  void check(bool written) const {
    require<IoError>(written, "cannot write {}; check the free space of its file system", names_path_.string());
  }
  std::filesystem::path names_path_;
  NpyStream<std::uint16_t> tokens_;
  NpyStream<std::int64_t> offsets_, sources_;
  std::unique_ptr<std::FILE, int (*)(std::FILE*)> names_;
  std::size_t count_ = 0;
};

}  // namespace emox
