#include "parallel/checkpoint/hdf5_file.h"

#include <hdf5.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <utility>

#include "parallel/checkpoint/layout.h"
#include "runtime/core/error.h"

namespace emox {
namespace {

static_assert(sizeof(hid_t) == sizeof(std::int64_t));

/// Held around every call of the library. The first holder silences the library's own printing of errors, and keeps it
/// from cleaning up when the process ends: every file is closed by then, and after a file that could not be closed
/// (disk full) HDF5 1.10 crashes there.
std::unique_lock<std::mutex> library_lock() {
  static std::mutex mutex;
  std::unique_lock<std::mutex> lock(mutex);
  static const bool prepared = H5dont_atexit() >= 0 && H5Eset_auto2(H5E_DEFAULT, nullptr, nullptr) >= 0;
  static_cast<void>(prepared);
  return lock;
}

/// Takes the innermost entry of the library's error stack, which knows the reason; the others say who called whom.
herr_t keep_first(unsigned, const H5E_error2_t* entry, void* text) {
  static_cast<std::string*>(text)->assign(entry->desc == nullptr ? "" : entry->desc);
  return 1;  // stop here
}

std::string library_reason() {
  std::string text;
  H5Ewalk2(H5E_DEFAULT, H5E_WALK_UPWARD, keep_first, &text);
  // I/O errors carry the system's number among buffer addresses and times that help nobody.
  constexpr std::string_view kErrno = "errno = ";
  if (const std::size_t at = text.find(kErrno); at != std::string::npos) {
    const int number = std::atoi(text.c_str() + at + kErrno.size());
    if (number != 0) return std::strerror(number);
  }
  return text.empty() ? "unknown HDF5 error" : "HDF5: " + text;
}

/// Closes an identifier of any kind with its own function.
class Handle {
 public:
  Handle(hid_t id, herr_t (*with)(hid_t)) : id_(id), close_(with) {}
  ~Handle() {
    if (id_ >= 0) close_(id_);
  }
  Handle(const Handle&) = delete;
  Handle& operator=(const Handle&) = delete;
  hid_t get() const { return id_; }
  bool good() const { return id_ >= 0; }
  /// False when the library could not: what it still held of a dataset is lost then.
  bool close() { return close_(std::exchange(id_, -1)) >= 0; }

 private:
  hid_t id_;
  herr_t (*close_)(hid_t);
};

hid_t memory_type(DType t) {
  switch (t) {
    case DType::F32:
      return H5T_NATIVE_FLOAT;
    case DType::F64:
      return H5T_NATIVE_DOUBLE;
    case DType::I32:
      return H5T_NATIVE_INT32;
    case DType::I64:
      return H5T_NATIVE_INT64;
    case DType::U8:
      return H5T_NATIVE_UINT8;
  }
  return -1;
}

hid_t file_type(DType t) {
  switch (t) {
    case DType::F32:
      return H5T_IEEE_F32LE;
    case DType::F64:
      return H5T_IEEE_F64LE;
    case DType::I32:
      return H5T_STD_I32LE;
    case DType::I64:
      return H5T_STD_I64LE;
    case DType::U8:
      return H5T_STD_U8LE;
  }
  return -1;
}

hid_t space_of(const Shape& shape) {
  if (shape.rank() == 0) return H5Screate(H5S_SCALAR);
  std::array<hsize_t, Shape::kMaxRank> dims{};
  for (int i = 0; i < shape.rank(); ++i) dims[static_cast<std::size_t>(i)] = static_cast<hsize_t>(shape[i]);
  return H5Screate_simple(shape.rank(), dims.data(), nullptr);
}

/// Whether a dataset has exactly the entry's shape and type: H5Dread would convert the one and misread the other.
bool fits(hid_t dataset, const ManifestTensor& entry) {
  const Handle space(H5Dget_space(dataset), H5Sclose);
  const Handle wanted(space_of(entry.dataset_shape()), H5Sclose);
  const Handle type(H5Dget_type(dataset), H5Tclose);
  return space.good() && wanted.good() && type.good() && H5Sextent_equal(space.get(), wanted.get()) > 0 &&
         H5Tequal(type.get(), file_type(entry.dtype)) > 0;
}

/// Moves elements [begin, begin + view.numel()) of the flattened dataset, which has this shape, from or to memory. No
/// buffer lies between: the library moves contiguous elements of one type directly. `task` is what an error cannot do.
template <typename Transfer>
void transfer(const Shape& shape, std::int64_t begin, const TensorView& view, const std::string& task,
              const Transfer& move) {
  const Handle space(space_of(shape), H5Sclose);
  for (const Box& box : boxes_of(shape, begin, begin + view.numel())) {
    std::array<hsize_t, Shape::kMaxRank> start{}, count{};
    std::copy(box.start.begin(), box.start.end(), start.begin());
    std::copy(box.count.begin(), box.count.end(), count.begin());
    const Handle memory(space_of({box.end - box.begin}), H5Sclose);
    char* data = static_cast<char*>(view.raw()) + static_cast<std::size_t>(box.begin - begin) * size_of(view.dtype());
    const bool moved = memory.good() &&
                       // All of a scalar is selected already.
                       (shape.rank() == 0 || H5Sselect_hyperslab(space.get(), H5S_SELECT_SET, start.data(), nullptr,
                                                                 count.data(), nullptr) >= 0) &&
                       move(memory.get(), space.get(), data) >= 0;
    // Here, because the next call of the library, even one that closes a handle, forgets the reason.
    if (!moved) fail<IoError>("cannot {}: {}", task, library_reason());
  }
}

void write_attribute(hid_t dataset, const char* name, const Shape& shape, const std::int64_t* values,
                     const std::string& task) {
  const Handle space(space_of(shape), H5Sclose);
  const Handle attribute(H5Acreate2(dataset, name, H5T_STD_I64LE, space.get(), H5P_DEFAULT, H5P_DEFAULT), H5Aclose);
  if (!attribute.good() || H5Awrite(attribute.get(), H5T_NATIVE_INT64, values) < 0)
    fail<IoError>("cannot {}: {}", task, library_reason());
}

/// For people and tools that look at one file; loading goes by the manifest.
void write_place_in_array(hid_t dataset, const ManifestTensor& entry, const std::string& task) {
  std::array<std::int64_t, Shape::kMaxRank> extents{};
  for (int i = 0; i < entry.shape.rank(); ++i) extents[static_cast<std::size_t>(i)] = entry.shape[i];
  write_attribute(dataset, "begin", {}, &entry.begin, task);
  write_attribute(dataset, "end", {}, &entry.end, task);
  write_attribute(dataset, "shape", {entry.shape.rank()}, extents.data(), task);
}

/// Lets the library write the rest of a failed file into memory. Unable to get rid of it, it could not close the file,
/// and would keep broken remains of it.
void divert_to_memory(hid_t file) {
  void* descriptor = nullptr;
  if (H5Fget_vfd_handle(file, H5P_DEFAULT, &descriptor) < 0) return;
  const int memory = memfd_create("emox-failed-checkpoint", MFD_CLOEXEC);
  if (memory < 0) return;
  dup2(memory, *static_cast<const int*>(descriptor));
  ::close(memory);
}

hid_t access_properties() {
  const hid_t access = H5Pcreate(H5P_FILE_ACCESS);
  if (access < 0) return access;
  // Groups of the newer, smaller kind. A file is written by one rank and renamed into place, so
  // the library's locks, which some parallel file systems refuse, protect nothing.
  H5Pset_libver_bounds(access, H5F_LIBVER_V18, H5F_LIBVER_V110);
  H5Pset_file_locking(access, 0, 1);
  H5Pset_fclose_degree(access, H5F_CLOSE_STRONG);
  return access;
}

}  // namespace

Hdf5File::Hdf5File(std::filesystem::path path, bool write) : path_(std::move(path)) {
  const auto lock = library_lock();
  const Handle access(access_properties(), H5Pclose);
  const Handle creation(H5Pcreate(H5P_FILE_CREATE), H5Pclose);
  H5Pset_obj_track_times(creation.get(), 0);  // the root group's
  id_ = write ? H5Fcreate(path_.c_str(), H5F_ACC_TRUNC, creation.get(), access.get())
              : H5Fopen(path_.c_str(), H5F_ACC_RDONLY, access.get());
  require<IoError>(id_ >= 0, "cannot {} {}: {}", write ? "create" : "open", path_.string(), library_reason());
}

Hdf5File::~Hdf5File() {
  if (id_ < 0) return;
  const auto lock = library_lock();
  if (failed_) divert_to_memory(id_);
  H5Fclose(id_);
}

void Hdf5File::write(const ManifestTensor& entry, std::span<const TensorView> blocks) {
  failed_ = true;
  create_and_write(entry, blocks);
  failed_ = false;
}

void Hdf5File::create_groups(const std::string& dataset) {
  // One by one: those that the library adds by itself carry the time, and equal content should give equal files.
  const Handle properties(H5Pcreate(H5P_GROUP_CREATE), H5Pclose);
  H5Pset_obj_track_times(properties.get(), 0);
  for (std::size_t slash = dataset.find('/', 1); slash != std::string::npos; slash = dataset.find('/', slash + 1)) {
    const std::string path = dataset.substr(0, slash);
    if (!groups_.insert(path).second) continue;
    const Handle group(H5Gcreate2(id_, path.c_str(), H5P_DEFAULT, properties.get(), H5P_DEFAULT), H5Gclose);
    require<IoError>(group.good(), "cannot create {} in {}: {}", path, path_.string(), library_reason());
  }
}

void Hdf5File::create_and_write(const ManifestTensor& entry, std::span<const TensorView> blocks) {
  const auto lock = library_lock();
  create_groups(entry.dataset);
  const Shape shape = entry.dataset_shape();
  const Handle properties(H5Pcreate(H5P_DATASET_CREATE), H5Pclose);
  H5Pset_fill_time(properties.get(), H5D_FILL_TIME_NEVER);  // every element is written, once
  H5Pset_obj_track_times(properties.get(), 0);              // as for groups
  const Handle space(space_of(shape), H5Sclose);
  Handle set(H5Dcreate2(id_, entry.dataset.c_str(), file_type(entry.dtype), space.get(), H5P_DEFAULT, properties.get(),
                        H5P_DEFAULT),
             H5Dclose);
  require<IoError>(set.good(), "cannot create {} in {}: {}", entry.dataset, path_.string(), library_reason());
  const std::string task = fmt::format("write {} to {}", entry.dataset, path_.string());
  if (!entry.whole()) write_place_in_array(set.get(), entry, task);
  std::int64_t at = 0;
  for (const TensorView& block : blocks) {
    transfer(shape, at, block, task, [&](hid_t memory, hid_t file, const void* data) {
      return H5Dwrite(set.get(), memory_type(entry.dtype), memory, file, H5P_DEFAULT, data);
    });
    at += block.numel();
  }
  // Small datasets are written only here, and nothing later would tell.
  if (!set.close()) fail<IoError>("cannot {}: {}", task, library_reason());
}

void Hdf5File::read(const ManifestTensor& entry, std::span<const ArraySlice> slices) {
  const auto lock = library_lock();
  const Handle set(H5Dopen2(id_, entry.dataset.c_str(), H5P_DEFAULT), H5Dclose);
  require<IoError>(set.good(), "cannot find {} in {}: {}", entry.dataset, path_.string(), library_reason());
  require<IoError>(fits(set.get(), entry), "{} in {} is not {} {}", entry.dataset, path_.string(), name_of(entry.dtype),
                   entry.dataset_shape().str());
  const std::string task = fmt::format("read {} from {}", entry.dataset, path_.string());
  for (const ArraySlice& slice : slices)
    transfer(entry.dataset_shape(), slice.begin - entry.begin, slice.view, task,
             [&](hid_t memory, hid_t file, void* data) {
               return H5Dread(set.get(), memory_type(entry.dtype), memory, file, H5P_DEFAULT, data);
             });
}

void Hdf5File::close() {
  const auto lock = library_lock();
  // Most write errors come here, where the file can still be thrown away in order.
  failed_ = H5Fflush(id_, H5F_SCOPE_LOCAL) < 0;
  require<IoError>(!failed_, "cannot write {}: {}", path_.string(), library_reason());
  const herr_t closed = H5Fclose(std::exchange(id_, -1));
  require<IoError>(closed >= 0, "cannot finish {}: {}", path_.string(), library_reason());
}

}  // namespace emox
