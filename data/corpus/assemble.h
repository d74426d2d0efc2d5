// From the documents of a domain to its files: dropping duplicates, holding out, ordering, capping, writing.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <unordered_set>
#include <vector>

#include "data/corpus/corpus.h"
#include "data/corpus/domains.h"

namespace emox {

/// Hashes of all texts seen so far, over all domains.
using SeenTexts = std::unordered_set<std::uint64_t>;

/// The documents of a domain, in the order of the files' names. `root` holds the unpacked packages. Pieces seen before,
/// here or in an earlier domain, are dropped; then short neighbours are joined. Counts both kinds of drops in the
/// report. Throws IoError if no file matches the domain's patterns (the package has changed).
std::vector<std::string> collect_documents(const Domain& domain, const std::filesystem::path& root, SeenTexts& seen,
                                           DomainReport& report);
/// The middle of it, for the texts of one file.
std::vector<std::string> documents_of_file(const std::vector<std::string>& texts, SeenTexts& seen,
                                           DomainReport& report);

struct Split {
  std::vector<std::string> train, held_out;
};

/// Orders documents by a hash of their content, holds out the first ones and fills the training part up to the cap. A
/// pure function of the set of documents: their order on the way in does not matter. Which documents are held out
/// depends on the cap and the fraction only by how many they are.
Split split_documents(std::vector<std::string> documents, std::int64_t bytes_per_domain, double held_out_fraction);

/// Writes `<name>.npy` (uint16) and `<name>.docs.npy` into the directory. Throws IoError.
void write_documents(const std::filesystem::path& directory, const std::string& name,
                     const std::vector<std::string>& documents);

}  // namespace emox
