// Pools and picks of a training run in a compact file, so that placements and larger meshes can be tried on what a real
// router did (`emox train --record-pools`, `emox bench dispatch --replay`).
//
// File, little-endian: "EMOXPOOL", then u32 version, experts, top_k, layers (routed experts and picks only). Then a
// record a micro-batch and layer: u32 step, layer, documents, tokens; u32 length of each document; its pool as bits,
// (experts + 7) / 8 bytes a document, expert e in bit e % 8 of byte e / 8; in version 2 the tokens that are free of
// their document's pool (moe.pool_free_tokens), as bits in the same way, (tokens + 7) / 8 bytes; the picks of each
// token, u8 with at most 256 experts, else u16. Version 1 is written when no token is free. Version 3 has the words,
// too, so that what is known before a forward pass can be learned from: after the header u32 free tokens (0 or 1) and
// words of the vocabulary; the free tokens' bits only if there are any; and at the end of the records of layer 0 u32
// length of a sequence, then the tokens, u16 with at most 65,536 words, else u32. Every rank writes its own file: NAME
// for one rank, NAME.00001-of-00004 with more.
#pragma once

#include <cstdint>
#include <filesystem>
#include <fstream>
#include <optional>
#include <string>
#include <vector>

#include "parallel/expert/token_dispatcher.h"
#include "runtime/core/context.h"

namespace emox {

struct PoolTraceHeader {
  std::uint32_t experts = 0, top_k = 0, layers = 0;
  bool free_tokens = false;      ///< version 2
  std::uint32_t vocabulary = 0;  ///< version 3; 0: without tokens
  friend bool operator==(const PoolTraceHeader&, const PoolTraceHeader&) = default;
};

struct PoolRecord {
  std::uint32_t step = 0, layer = 0;
  std::vector<std::int32_t> segments;          ///< [docs + 1]
  std::vector<std::uint8_t> pools;             ///< [docs, experts]
  std::vector<std::int32_t> ids;               ///< [tokens, top_k]
  std::vector<std::uint8_t> free_tokens = {};  ///< [tokens]; empty in version 1
  std::int64_t sequence_length = 0;            ///< 0: without tokens
  std::vector<std::int32_t> tokens = {};       ///< [tokens] of whole sequences; empty in other layers than the first
};

/// Tokens of a micro-batch of whole sequences.
struct RecordedWords {
  std::int64_t sequence_length = 0;
  std::vector<std::int32_t> tokens;
};

/// The file that a rank writes.
std::filesystem::path pool_trace_path(const std::filesystem::path& name, int rank, int ranks);
/// The files of a recording: `name` itself, or all its parts. UsageError when there is none, or when parts are missing.
std::vector<std::filesystem::path> pool_trace_files(const std::filesystem::path& name);

/// What there is of a recording: `name` itself, and parts of any number of ranks.
std::vector<std::filesystem::path> existing_parts(const std::filesystem::path& name);

/// What to do about a recording that is there.
enum class PoolTraceFile : std::uint8_t { MustBeNew, Replace, Continue };

class PoolTraceWriter {
 public:
  /// UsageError when the file cannot be written, or when it is there and must not be. `Continue`: the records of steps
  /// up to `last_step` stay, later ones and one cut short go; UsageError when it is no recording, or one of another
  /// model. A file that is not there is begun in any case.
  PoolTraceWriter(const std::filesystem::path& file, const PoolTraceHeader& header,
                  PoolTraceFile existing = PoolTraceFile::MustBeNew, std::int64_t last_step = 0);
  /// What a layer decided for a micro-batch: ids i32 [T,k]. IoError when the disk is full; free tokens that the header
  /// does not announce are a ShapeError.
  /// `words`: in layer 0 of a recording with a vocabulary, the T tokens of its whole sequences.
  void write(Context& ctx, std::int64_t step, std::int64_t layer, TensorView ids, const DocumentPools& pools,
             const RecordedWords& words = {});
  /// Whatever was written is in the file. IoError.
  void flush();
  /// The last step of the recording that is gone on with; 0 of a new one.
  std::int64_t continued_after() const { return continued_after_; }

 private:
  std::filesystem::path path_;
  std::ofstream out_;
  PoolTraceHeader header_;
  std::string bytes_;  // of one record
  std::int64_t continued_after_ = 0;
};

class PoolTraceReader {
 public:
  /// UsageError naming the file when it is no recording.
  explicit PoolTraceReader(const std::filesystem::path& file);
  const PoolTraceHeader& header() const { return header_; }
  /// The next record; nothing at the end. UsageError when the file is damaged; a record cut short by a crash ends it.
  std::optional<PoolRecord> next();
  /// Bytes up to the end of the last record that next() gave.
  std::uintmax_t position() const { return position_; }

 private:
  bool read(void* to, std::size_t bytes);
  bool read_words(PoolRecord& record);
  std::filesystem::path path_;
  std::ifstream in_;
  std::uintmax_t left_ = 0, read_ = 0, position_ = 0;
  PoolTraceHeader header_;
};

}  // namespace emox
