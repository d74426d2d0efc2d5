#include "data/corpus/extract.h"

#include <zlib.h>

#include <memory>

#include "runtime/core/error.h"
#include "runtime/core/idx.h"

namespace emox {

std::string read_source_text(const std::filesystem::path& path) {
  const std::unique_ptr<gzFile_s, int (*)(gzFile)> file(gzopen(path.c_str(), "rb"), gzclose);
  require<IoError>(file != nullptr, "cannot open {}", path.string());
  gzbuffer(file.get(), 1 << 17);
  std::string text;
  std::string buffer(1 << 17, '\0');
  for (;;) {
    const int n = gzread(file.get(), buffer.data(), static_cast<unsigned>(buffer.size()));
    require<IoError>(n >= 0, "{} is damaged: it cannot be decompressed", path.string());
    if (n == 0) break;
    text.append(buffer.data(), idx(n));
  }
  return text;
}

std::vector<std::string> extract_file(Rule rule, const std::filesystem::path& path) {
  const std::string text = read_source_text(path);
  const auto beside = [&](const char* extension) { return std::filesystem::path(path).replace_extension(extension); };
  switch (rule) {
    case Rule::Html:
      return {extract_html(text)};
    case Rule::Pod:
      return {extract_pod(text)};
    case Rule::Python:
      return {extract_python(text)};
    case Rule::Ml:
      return {extract_ml(text)};
    case Rule::Fortune:
      return extract_fortunes(text);
    case Rule::Dictd:
      return extract_dictionary(text, read_source_text(beside(".dict.dz")));
    case Rule::Sword:
      return extract_sword(text, read_source_text(beside(".bzz")));
  }
  return {};
}

}  // namespace emox
