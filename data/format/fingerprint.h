// What a file's elements are, in a few bytes: by all of them where they are few, by fixed samples where they are many.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <string>

#include "data/format/stored_file.h"

namespace emox {

/// Up to so many bytes of elements are read whole.
inline constexpr std::int64_t kWholeFingerprintBytes = std::int64_t{64} << 20;

/// Called with every stretch that is read and where it begins, counted in bytes from the first element.
using StretchObserver = std::function<void(std::int64_t at, std::span<const std::byte> bytes)>;

/// Of the elements in bytes [offset, end of the file): "xxh3-128:" and 32 digits of all of them, or, beyond
/// kWholeFingerprintBytes, "xxh3-128-sample:" and those of 32 stretches of 64 KiB, evenly spread from the first byte to
/// the last, and of the length. A pure function of the elements: a header before them does not matter. Throws IoError.
std::string fingerprint_of(const StoredFile& file, std::int64_t offset, const StretchObserver& observer = {});

/// "xxh3-128:" and 32 digits of all elements, however many.
std::string whole_fingerprint_of(const StoredFile& file, std::int64_t offset, const StretchObserver& observer = {});

/// Whether it was made of all elements.
bool is_whole_fingerprint(const std::string& fingerprint);

}  // namespace emox
