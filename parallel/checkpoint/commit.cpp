#include "parallel/checkpoint/commit.h"

#include <exception>

#include "parallel/checkpoint/checkpoint.h"
#include "parallel/checkpoint/checksum.h"
#include "parallel/checkpoint/hdf5_file.h"
#include "parallel/checkpoint/layout.h"
#include "runtime/files/atomic_file.h"
#include "runtime/files/files.h"

namespace emox {

namespace fs = std::filesystem;

fs::path unfinished_path(const fs::path& directory, std::int64_t step) {
  return directory / (step_directory_name(step) + ".tmp");
}

CommittedCheckpoint commit_checkpoint(const fs::path& directory, Manifest& manifest, const Retention& retention,
                                      Existing existing) {
  const fs::path temporary = unfinished_path(directory, manifest.step);
  const fs::path index = temporary / kIndexFileName;
  const fs::path final_path = directory / step_directory_name(manifest.step);
  write_index(index, manifest);
  manifest.files.push_back({kIndexFileName, bytes_of_file(index), checksum_of_file(index)});
  {
    AtomicFile file(temporary / "manifest.json");
    file.write(manifest_text(manifest));
    file.commit();
  }
  PlacedDirectory placed(temporary, final_path, existing);
  replace_link(final_path.filename(), directory / kLatestName);
  CommittedCheckpoint done{final_path, placed.keep(), ""};
  // Its files were read back a moment ago: nothing needs to be read again before older ones go.
  try {
    if (retention.keep_last > 0)
      prune_checkpoints(directory, retention.keep_last, retention.keep_every_steps, manifest.step);
  } catch (const std::exception& e) {
    // The new one is complete all the same. The next save tries again.
    done.not_removed = e.what();
  }
  return done;
}

}  // namespace emox
