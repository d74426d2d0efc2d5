// Loading: every file is read once in the whole job, by one rank, which verifies it on the way and hands on what other
// ranks own. Neither the bytes read nor the files opened grow with the number of ranks.
#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <functional>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>
#include <utility>

#include "parallel/checkpoint/checkpoint.h"
#include "parallel/checkpoint/checksum.h"
#include "parallel/checkpoint/hdf5_file.h"
#include "parallel/checkpoint/load_plan.h"
#include "parallel/checkpoint/shard.h"
#include "parallel/checkpoint/verify.h"
#include "parallel/comm/progress.h"
#include "parallel/comm/together.h"
#include "runtime/core/error.h"
#include "runtime/core/idx.h"
#include "runtime/files/file_error.h"
#include "runtime/files/files.h"

namespace emox {
namespace {

namespace fs = std::filesystem;

/// How much of its stream a rank reads, and hands on, at a time: what a load needs in memory beside the pieces.
constexpr std::int64_t kWindow = std::int64_t{4} << 20;

/// A rank's files, one after another.
class FileStream {
 public:
  FileStream(const fs::path& checkpoint, const std::vector<LoadedFile>& files)
      : checkpoint_(checkpoint), files_(files) {}

  /// The next bytes, as many as `to` has or are left; returns how many. DamagedError at the end of a file that is not
  /// what the manifest says.
  std::int64_t read(std::span<std::byte> to) {
    std::int64_t done = 0;
    while (file_ < files_.size()) {
      const LoadedFile& f = files_[file_];
      if (!open_) begin_file(f);
      const auto room = static_cast<std::int64_t>(to.size()) - done;
      const std::int64_t n = std::min(room, f.file.bytes - at_);
      read_exactly(f, to.subspan(idx(done), idx(n)));
      done += n;
      if (at_ < f.file.bytes) break;
      end_file(f);
    }
    bytes_ += done;
    return done;
  }
  std::int64_t bytes() const { return bytes_; }
  int opened() const { return opened_; }

 private:
  struct Open {
    explicit Open(const fs::path& path) : descriptor(path, O_RDONLY) {}
    FileDescriptor descriptor;
    Checksum whole, dataset;
    std::size_t next = 0;   ///< dataset
    std::string different;  ///< what is wrong with a dataset
  };

  void begin_file(const LoadedFile& f) {
    open_.emplace(checkpoint_ / f.file.name);
    at_ = 0;
    ++opened_;
  }

  void read_exactly(const LoadedFile& f, std::span<std::byte> to) {
    for (std::size_t done = 0; done < to.size();) {
      const ssize_t n = ::read(open_->descriptor.get(), to.data() + done, to.size() - done);
      if (n < 0 && errno == EINTR) continue;
      const fs::path path = checkpoint_ / f.file.name;
      if (n < 0) fail_to_read("read", path, errno);
      require<DamagedError>(n != 0, "{} is damaged: it ends after {} bytes, the manifest says {}", path.string(),
                            at_ + static_cast<std::int64_t>(done), f.file.bytes);
      done += idx(n);
    }
    open_->whole.update(to.data(), to.size());
    check_datasets(f, to);
    at_ += static_cast<std::int64_t>(to.size());
  }

  /// Of the bytes from at_ on: those that are datasets' go into their checksums.
  void check_datasets(const LoadedFile& f, std::span<const std::byte> bytes) {
    const std::int64_t end = at_ + static_cast<std::int64_t>(bytes.size());
    while (open_->next < f.datasets.size() && f.datasets[open_->next].offset < end) {
      const LoadedDataset& d = f.datasets[open_->next];
      const std::int64_t from = std::max(at_, d.offset), to = std::min(end, d.offset + d.bytes);
      if (from < to) open_->dataset.update(bytes.data() + (from - at_), idx(to - from));
      if (d.offset + d.bytes > end) break;
      const std::string got = open_->dataset.hex();
      if (got != d.checksum && open_->different.empty())
        open_->different = fmt::format("{}, in {} is damaged: checksum {}, the manifest says {}", d.title, f.file.name,
                                       got, d.checksum);
      open_->dataset = {};
      ++open_->next;
    }
  }

  void end_file(const LoadedFile& f) {
    const fs::path path = checkpoint_ / f.file.name;
    const std::string got = open_->whole.hex();
    require<DamagedError>(got == f.file.checksum, "{} is damaged: checksum {}, the manifest says {}", path.string(),
                          got, f.file.checksum);
    const std::string different = std::move(open_->different);
    open_.reset();
    ++file_;
    require<DamagedError>(different.empty(), "{}", different);
  }

  const fs::path& checkpoint_;
  const std::vector<LoadedFile>& files_;
  std::size_t file_ = 0;
  std::int64_t at_ = 0, bytes_ = 0;
  int opened_ = 0;
  std::optional<Open> open_;
};

/// Bytes between ranks, in the order of the streams.
class Exchange {
 public:
  Exchange(Communicator& comm, const LoadPlan& plan, std::span<const CheckpointPiece> pieces)
      : comm_(comm), plan_(plan), pieces_(pieces), buffers_(idx(comm.size())) {}

  /// The window [begin, begin + bytes.size()) of this rank's stream goes to those that wait for it, and this rank's
  /// memory is filled from the others' windows, which begin there as well.
  void window(std::int64_t begin, std::span<const std::byte> bytes) {
    const std::int64_t end = begin + kWindow;
    for (auto& b : buffers_) b.clear();
    while (out_ < plan_.out.size() && plan_.out[out_].begin + plan_.out[out_].bytes <= begin) ++out_;
    for (std::size_t i = out_; i < plan_.out.size() && plan_.out[i].begin < end; ++i) {
      const OutgoingBytes& o = plan_.out[i];
      const std::int64_t from = std::max(begin, o.begin), to = std::min(end, o.begin + o.bytes);
      if (from >= to) continue;
      const std::byte* const source = bytes.data() + (from - begin);
      if (o.to == comm_.rank())
        std::memcpy(memory_of(o.piece) + o.at + (from - o.begin), source, idx(to - from));
      else
        buffers_[idx(o.to)].insert(buffers_[idx(o.to)].end(), source, source + (to - from));
    }
    if (plan_.exchanges) exchange(begin, end);
  }

 private:
  std::byte* memory_of(std::size_t piece) const { return static_cast<std::byte*>(pieces_[piece].view.raw()); }

  /// Calls visit(incoming, first byte, end) for what the others send of the window, in the order in which it comes.
  template <typename Visit>
  void for_incoming(std::int64_t begin, std::int64_t end, const Visit& visit) const {
    for (const IncomingBytes& i : plan_.in) {
      const std::int64_t from = std::max(begin, i.begin), to = std::min(end, i.begin + i.bytes);
      if (from < to) visit(i, from, to);
    }
  }

  void exchange(std::int64_t begin, std::int64_t end) {
    const std::size_t ranks = buffers_.size();
    std::vector<std::int64_t> send(ranks), receive(ranks);
    std::int64_t sent = 0, received = 0;
    for (std::size_t r = 0; r < ranks; ++r) sent += send[r] = static_cast<std::int64_t>(buffers_[r].size());
    for_incoming(begin, end, [&](const IncomingBytes& i, std::int64_t from, std::int64_t to) {
      receive[idx(i.from)] += to - from;
      received += to - from;
    });
    in_.resize(idx(received));
    all_.clear();
    for (const auto& b : buffers_) all_.insert(all_.end(), b.begin(), b.end());
    comm_.all_to_all_v(TensorView(in_.data(), DType::U8, {received}), receive,
                       TensorView(all_.data(), DType::U8, {sent}), send);
    const std::byte* next = in_.data();
    for_incoming(begin, end, [&](const IncomingBytes& i, std::int64_t from, std::int64_t to) {
      std::memcpy(memory_of(i.piece) + i.at + (from - i.begin), next, idx(to - from));
      next += to - from;
    });
  }

  Communicator& comm_;
  const LoadPlan& plan_;
  std::span<const CheckpointPiece> pieces_;
  std::vector<std::vector<std::byte>> buffers_;  ///< to each rank
  std::vector<std::byte> all_, in_;
  std::size_t out_ = 0;  ///< the first that is not behind the window
};

/// Runs `plan` on rank 0; what does not fit is a MisfitError on all ranks.
void plan_together(Communicator& comm, const std::function<void()>& plan) {
  try {
    run_together(comm, [&] {
      if (comm.rank() == 0) plan();
    });
  } catch (const IoError& e) {
    fail<MisfitError>("{}", e.message());
  }
}

/// Older checkpoints do not say where their elements lie: the HDF5 library does, once a file is known to be intact.
/// `names`: the files that are looked at, on rank 0.
void find_offsets(Communicator& comm, const fs::path& checkpoint, Manifest& manifest,
                  const std::vector<std::string>& names, LoadReport& report) {
  const Manifest whole = manifest_everywhere(comm, checkpoint, manifest);
  const auto list = nlohmann::json::parse(broadcast_text(comm, nlohmann::json(names).dump()));
  const std::set<std::string> looked_at(list.begin(), list.end());
  std::string offsets;
  run_together(comm, [&] {
    std::map<std::string, std::vector<std::size_t>> tensors;
    for (std::size_t i = 0; i < whole.tensors.size(); ++i) tensors[whole.tensors[i].file].push_back(i);
    for (auto f = idx(comm.rank()); f < whole.files.size(); f += idx(comm.size())) {
      const ManifestFile& file = whole.files[f];
      if (!looked_at.contains(file.name)) continue;
      check_file(checkpoint, file);
      report.bytes += file.bytes;
      ++report.files;
      report_progress(comm);
      const auto& of_file = tensors[file.name];
      if (of_file.empty()) continue;
      Hdf5File opened = Hdf5File::open(checkpoint / file.name);
      for (const std::size_t i : of_file) offsets += fmt::format("{} {}\n", i, opened.offset_of(whole.tensors[i]));
    }
  });
  for (const std::string& text : gather_texts(comm, offsets)) {
    const char* at = text.c_str();
    while (*at != '\0') {
      char* next = nullptr;
      const std::size_t i = std::strtoull(at, &next, 10);
      manifest.tensors[i].offset = std::strtoll(next, &next, 10);
      at = next + 1;  // behind the end of the line
    }
  }
}

LoadPlan make_plan(Communicator& comm, const CheckpointInfo& found, std::span<const CheckpointPiece> wanted,
                   FilesToRead which, LoadReport& report) {
  std::string text;
  run_together(comm, [&] {
    for (const CheckpointPiece& p : wanted) check_piece(p);
    text = text_of_wanted(wanted);
  });
  const std::vector<std::string> texts = gather_texts(comm, text);
  const bool only_needed = which == FilesToRead::Needed;
  Manifest with_offsets;
  const Manifest* manifest = &found.manifest;
  if (root_says(comm, found.manifest.version == Manifest::kOldestVersion)) {
    with_offsets = found.manifest;
    std::vector<std::string> names;
    plan_together(comm, [&] {
      names = needed_files(with_offsets, found.path.string(), texts);
      if (!only_needed) names.clear();
      for (const ManifestFile& f : with_offsets.files)
        if (!only_needed) names.push_back(f.name);
    });
    find_offsets(comm, found.path, with_offsets, names, report);
    manifest = &with_offsets;
  }
  std::vector<std::string> plans;
  plan_together(comm, [&] { plans = plan_loads(*manifest, found.path.string(), texts, only_needed); });
  return load_plan_from(scatter_texts(comm, plans));
}

}  // namespace

LoadReport load_checkpoint(Communicator& comm, const CheckpointInfo& found, std::span<const CheckpointPiece> wanted,
                           FilesToRead which) {
  LoadReport report;
  const LoadPlan plan = make_plan(comm, found, wanted, which, report);
  // Sizes are cheap: a missing or short file is told before gigabytes are read.
  run_together(comm, [&] {
    for (const LoadedFile& f : plan.files) check_file_size(found.path, f.file);
  });
  FileStream stream(found.path, plan.files);
  Exchange exchange(comm, plan, wanted);
  const auto window = std::make_unique<std::byte[]>(idx(kWindow));
  std::exception_ptr failure;  // the others are told at the end: until then they wait for this rank's windows
  for (std::int64_t begin = 0; begin < plan.longest; begin += kWindow) {
    if (!failure) {
      const IoPhase io(comm);
      try {
        stream.read({window.get(), idx(kWindow)});
      } catch (const std::exception&) {
        failure = std::current_exception();
      }
    }
    exchange.window(begin, {window.get(), idx(kWindow)});
    report_progress(comm);
  }
  run_together(comm, [&] {
    if (failure) std::rethrow_exception(failure);
  });
  report.bytes += stream.bytes();
  report.files += stream.opened();
  std::int64_t sums[] = {report.bytes, report.files};
  comm.all_reduce(TensorView(sums, DType::I64, {2}));
  report.all_bytes = sums[0], report.all_files = sums[1];
  return report;
}

Manifest load_checkpoint(Communicator& comm, const fs::path& path, std::span<const CheckpointPiece> wanted) {
  CheckpointInfo found{path, read_manifest_of(comm, path)};
  load_checkpoint(comm, found, wanted);
  return std::move(found.manifest);
}

}  // namespace emox
