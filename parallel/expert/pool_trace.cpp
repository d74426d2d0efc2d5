#include "parallel/expert/pool_trace.h"

#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <cstdio>
#include <cstring>

#include "runtime/core/error.h"
#include "runtime/core/idx.h"
#include "runtime/ops/basic.h"

namespace emox {
namespace {

namespace fs = std::filesystem;

static_assert(std::endian::native == std::endian::little, "the file is little-endian");

constexpr char kMagic[8] = {'E', 'M', 'O', 'X', 'P', 'O', 'O', 'L'};
constexpr std::uint32_t kPlainVersion = 1, kVersionFreeTokens = 2, kVersionWords = 3;

void append(std::string& bytes, std::uint32_t value) {
  char raw[sizeof value];
  std::memcpy(raw, &value, sizeof value);
  bytes.append(raw, sizeof value);
}

// Flags as bits, the first in the lowest bit.
void append_bits(std::string& bytes, const std::uint8_t* flags, std::size_t count) {
  for (std::size_t first = 0; first < count; first += 8) {
    unsigned bits = 0;
    for (std::size_t i = first; i < std::min(first + 8, count); ++i) bits |= (flags[i] != 0 ? 1U : 0U) << (i - first);
    bytes.push_back(static_cast<char>(bits));
  }
}

void read_bits(std::vector<std::uint8_t>& flags, const std::uint8_t* bytes, std::uint64_t count) {
  for (std::uint64_t i = 0; i < count; ++i) flags.push_back(static_cast<std::uint8_t>(bytes[i / 8] >> (i % 8) & 1));
}

// The number of ranks that the end of a part's name tells, 00001-of-00004; 0 of any other text.
int ranks_of_part(const std::string& text) {
  unsigned part = 0, ranks = 0;
  int used = 0;
  const bool fits = std::sscanf(text.c_str(), "%9u-of-%9u%n", &part, &ranks, &used) == 2;
  return fits && idx(used) == text.size() ? static_cast<int>(ranks) : 0;
}

std::size_t pick_bytes(std::uint32_t experts) { return experts <= 256 ? 1 : 2; }
std::size_t word_bytes(std::uint32_t vocabulary) { return vocabulary <= 65536 ? 2 : 4; }

// What of a recording is of steps up to the last one. Steps follow each other.
struct Beginning {
  std::uintmax_t bytes = 0;
  std::int64_t step = 0;
};

Beginning beginning_of(const fs::path& file, const PoolTraceHeader& header, std::int64_t last_step) {
  PoolTraceReader reader(file);
  require<UsageError>(reader.header() == header,
                      "--record-pools {} holds a recording of another model, or one without tokens, of an older emox: "
                      "give --force to replace it, or another name",
                      file.string());
  Beginning kept{reader.position(), 0};
  while (const auto record = reader.next()) {
    if (static_cast<std::int64_t>(record->step) > last_step) break;
    kept = {reader.position(), record->step};
  }
  return kept;
}

}  // namespace

fs::path pool_trace_path(const fs::path& name, int rank, int ranks) {
  return ranks == 1 ? name : fs::path(fmt::format("{}.{:05d}-of-{:05d}", name.string(), rank, ranks));
}

std::vector<fs::path> existing_parts(const fs::path& name) {
  std::vector<fs::path> found;
  std::error_code ignored;
  if (fs::exists(fs::symlink_status(name, ignored))) found.push_back(name);
  const fs::path folder = name.has_parent_path() ? name.parent_path() : fs::path(".");
  const std::string prefix = name.filename().string() + ".";
  for (const auto& entry : fs::directory_iterator(folder, ignored)) {
    const std::string f = entry.path().filename().string();
    if (f.starts_with(prefix) && ranks_of_part(f.substr(prefix.size())) > 0) found.push_back(entry.path());
  }
  return found;
}

std::vector<fs::path> pool_trace_files(const fs::path& name) {
  if (fs::is_regular_file(name)) return {name};
  const std::string prefix = name.filename().string() + ".";
  std::vector<fs::path> found = existing_parts(name);
  std::erase(found, name);
  int ranks = 0;
  for (const fs::path& f : found) ranks = std::max(ranks, ranks_of_part(f.filename().string().substr(prefix.size())));
  require<UsageError>(!found.empty(), "{} is no recording of pools: neither it nor {}00000-of-... exists",
                      name.string(), prefix);
  std::vector<fs::path> parts;
  for (int r = 0; r < ranks; ++r) {
    parts.push_back(pool_trace_path(name, r, ranks));
    require<UsageError>(fs::is_regular_file(parts.back()), "the recording {} is of {} ranks, but {} is missing",
                        name.string(), ranks, parts.back().string());
  }
  for (const fs::path& f : found)
    require<UsageError>(ranks_of_part(f.filename().string().substr(prefix.size())) == ranks,
                        "beside the {} parts of the recording {} lies {}, a part of another one: remove it", ranks,
                        name.string(), f.filename().string());
  return parts;
}

PoolTraceWriter::PoolTraceWriter(const fs::path& file, const PoolTraceHeader& header, PoolTraceFile existing,
                                 std::int64_t last_step)
    : path_(file), header_(header) {
  std::error_code error;
  const bool is_there = fs::exists(fs::symlink_status(file, error));
  require<UsageError>(!is_there || existing != PoolTraceFile::MustBeNew,
                      "--record-pools {} exists: give --force to replace it, or another name", file.string());
  if (is_there && existing == PoolTraceFile::Continue) {
    const Beginning kept = beginning_of(file, header, last_step);
    continued_after_ = kept.step;
    fs::resize_file(file, kept.bytes, error);
    require<UsageError>(!error, "--record-pools {} cannot be gone on with: {}", file.string(), error.message());
    out_.open(file, std::ios::binary | std::ios::app);
  } else {
    out_.open(file, std::ios::binary | std::ios::trunc);
    bytes_.assign(kMagic, sizeof kMagic);
    const std::uint32_t version = header.vocabulary > 0 ? kVersionWords
                                  : header.free_tokens  ? kVersionFreeTokens
                                                        : kPlainVersion;
    for (const std::uint32_t v : {version, header.experts, header.top_k, header.layers}) append(bytes_, v);
    if (version == kVersionWords) append(bytes_, header.free_tokens ? 1 : 0), append(bytes_, header.vocabulary);
    out_.write(bytes_.data(), static_cast<std::streamsize>(bytes_.size()));
  }
  out_.flush();
  require<UsageError>(out_.good(), "--record-pools {} cannot be written", file.string());
}

void PoolTraceWriter::write(Context& ctx, std::int64_t step, std::int64_t layer, TensorView ids,
                            const DocumentPools& pools, const RecordedWords& words) {
  const auto segments = ops::to_host<std::int32_t>(ctx, pools.segments);
  const auto picks = ops::to_host<std::int32_t>(ctx, ids);
  const std::size_t docs = segments.size() - 1, experts = header_.experts;
  std::vector<std::uint8_t> mask(docs * experts, 1);
  if (!pools.pool.null() && docs > 0) ops::copy_to_host(ctx, mask.data(), pools.pool);
  bytes_.clear();
  append(bytes_, static_cast<std::uint32_t>(step));
  append(bytes_, static_cast<std::uint32_t>(layer));
  append(bytes_, static_cast<std::uint32_t>(docs));
  append(bytes_, static_cast<std::uint32_t>(ids.dim(0)));
  for (std::size_t d = 0; d < docs; ++d) append(bytes_, static_cast<std::uint32_t>(segments[d + 1] - segments[d]));
  for (std::size_t d = 0; d < docs; ++d) append_bits(bytes_, mask.data() + d * experts, experts);
  require<ShapeError>(pools.free_tokens.null() || header_.free_tokens,
                      "a recording without free tokens was given some of layer {}", layer);
  if (header_.free_tokens) {
    std::vector<std::uint8_t> flags(idx(ids.dim(0)), 0);
    if (!pools.free_tokens.null()) ops::copy_to_host(ctx, flags.data(), pools.free_tokens);
    append_bits(bytes_, flags.data(), flags.size());
  }
  for (const std::int32_t id : picks) {
    bytes_.push_back(static_cast<char>(id & 0xFF));
    if (pick_bytes(header_.experts) == 2) bytes_.push_back(static_cast<char>(id >> 8));
  }
  if (header_.vocabulary > 0 && layer == 0) {
    const auto n = static_cast<std::int64_t>(words.tokens.size());
    require<ShapeError>(n == ids.dim(0) && words.sequence_length > 0 && n % words.sequence_length == 0,
                        "a recording with tokens was given {} of {}, in sequences of {}", n, ids.dim(0),
                        words.sequence_length);
    append(bytes_, static_cast<std::uint32_t>(words.sequence_length));
    for (const std::int32_t w : words.tokens) {
      char raw[sizeof w];
      std::memcpy(raw, &w, sizeof w);
      bytes_.append(raw, word_bytes(header_.vocabulary));
    }
  }
  out_.write(bytes_.data(), static_cast<std::streamsize>(bytes_.size()));
  require<IoError>(out_.good(), "{} cannot be written: is the disk full?", path_.string());
}

void PoolTraceWriter::flush() {
  out_.flush();
  require<IoError>(out_.good(), "{} cannot be written: is the disk full?", path_.string());
}

PoolTraceReader::PoolTraceReader(const fs::path& file) : path_(file), in_(file, std::ios::binary) {
  require<UsageError>(in_.good(), "{} cannot be read", file.string());
  left_ = fs::file_size(file);
  char magic[sizeof kMagic] = {};
  std::uint32_t values[4] = {};
  const bool whole = read(magic, sizeof magic) && read(values, sizeof values);
  require<UsageError>(whole && std::equal(std::begin(magic), std::end(magic), std::begin(kMagic)),
                      "{} is not a recording of pools", file.string());
  require<UsageError>(values[0] >= kPlainVersion && values[0] <= kVersionWords,
                      "{} is of version {}, this emox reads versions {} to {}", file.string(), values[0], kPlainVersion,
                      kVersionWords);
  header_ = {values[1], values[2], values[3], values[0] == kVersionFreeTokens};
  if (values[0] == kVersionWords) {
    std::uint32_t more[2] = {};
    require<UsageError>(read(more, sizeof more) && more[0] <= 1 && more[1] > 0, "{} is damaged: no size of vocabulary",
                        file.string());
    header_.free_tokens = more[0] == 1, header_.vocabulary = more[1];
  }
  require<UsageError>(header_.experts >= 1 && header_.experts <= 65536 && header_.top_k >= 1 &&
                          header_.top_k <= header_.experts && header_.layers >= 1,
                      "{} is damaged: {} experts, {} picks a token, {} layers", file.string(), header_.experts,
                      header_.top_k, header_.layers);
  position_ = read_;
}

bool PoolTraceReader::read(void* to, std::size_t bytes) {
  if (bytes > left_) return false;  // before anything is allocated for it
  in_.read(static_cast<char*>(to), static_cast<std::streamsize>(bytes));
  left_ -= bytes;
  read_ += bytes;
  return in_.good();
}

std::optional<PoolRecord> PoolTraceReader::next() {
  std::uint32_t head[4];
  if (!read(head, sizeof head)) return std::nullopt;
  const std::uint64_t docs = head[2], tokens = head[3], experts = header_.experts;
  const std::uint64_t mask_bytes = (experts + 7) / 8, one = pick_bytes(header_.experts);
  require<UsageError>(head[1] < header_.layers, "{} is damaged: a record of layer {}, there are {}", path_.string(),
                      head[1], header_.layers);
  const std::uint64_t free_bytes = header_.free_tokens ? (tokens + 7) / 8 : 0;
  if (docs * (sizeof(std::uint32_t) + mask_bytes) + free_bytes + tokens * header_.top_k * one > left_)
    return std::nullopt;
  PoolRecord r{head[0], head[1], {0}, {}, {}};
  std::vector<std::uint32_t> lengths(docs);
  std::vector<std::uint8_t> masks(docs * mask_bytes), free_tokens(free_bytes), picks(tokens * header_.top_k * one);
  if (!read(lengths.data(), docs * sizeof(std::uint32_t)) || !read(masks.data(), masks.size()) ||
      !read(free_tokens.data(), free_tokens.size()) || !read(picks.data(), picks.size()))
    return std::nullopt;
  std::uint64_t sum = 0;
  for (const std::uint32_t n : lengths) {
    sum += n;
    require<UsageError>(sum <= tokens, "{} is damaged: documents longer than their micro-batch", path_.string());
    r.segments.push_back(static_cast<std::int32_t>(sum));
  }
  require<UsageError>(sum == tokens, "{} is damaged: documents of {} tokens in a micro-batch of {}", path_.string(),
                      sum, tokens);
  for (std::uint64_t d = 0; d < docs; ++d) read_bits(r.pools, masks.data() + d * mask_bytes, experts);
  if (header_.free_tokens) read_bits(r.free_tokens, free_tokens.data(), tokens);
  for (std::uint64_t i = 0; i < tokens * header_.top_k; ++i) {
    const std::int32_t id = one == 1 ? picks[i] : picks[2 * i] + 256 * picks[2 * i + 1];
    require<UsageError>(id < static_cast<std::int32_t>(experts), "{} is damaged: a pick of expert {}, there are {}",
                        path_.string(), id, experts);
    r.ids.push_back(id);
  }
  if (header_.vocabulary > 0 && r.layer == 0 && !read_words(r)) return std::nullopt;
  position_ = read_;
  return r;
}

bool PoolTraceReader::read_words(PoolRecord& r) {
  const std::size_t tokens = idx(r.segments.back()), one = word_bytes(header_.vocabulary);
  std::uint32_t length = 0;
  if (!read(&length, sizeof length) || tokens * one > left_) return false;
  require<UsageError>(length > 0 && tokens % length == 0, "{} is damaged: {} tokens in sequences of {}", path_.string(),
                      tokens, length);
  std::vector<std::uint8_t> bytes(tokens * one);
  if (!read(bytes.data(), bytes.size())) return false;
  r.sequence_length = length;
  for (std::size_t i = 0; i < tokens; ++i) {
    std::uint32_t word = 0;
    std::memcpy(&word, bytes.data() + i * one, one);
    require<UsageError>(word < header_.vocabulary, "{} is damaged: word {} of a vocabulary of {}", path_.string(), word,
                        header_.vocabulary);
    r.tokens.push_back(static_cast<std::int32_t>(word));
  }
  return true;
}

}  // namespace emox
