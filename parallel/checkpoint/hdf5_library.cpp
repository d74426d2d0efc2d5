#include "parallel/checkpoint/hdf5_library.h"

#include <sys/mman.h>
#include <unistd.h>

#include <array>
#include <cstdlib>
#include <string_view>
#include <utility>

#include "runtime/core/error.h"
#include "runtime/core/idx.h"
#include "runtime/files/file_error.h"

namespace emox::hdf5 {
namespace {

[[noreturn]] void fail_without_type(DType t) {
  fail<ShapeError>("a checkpoint holds no {}: it holds the f32 master weights", name_of(t));
}

/// Takes the innermost entry of the library's error stack, which knows the reason; the others say who called whom.
herr_t keep_first(unsigned, const H5E_error2_t* entry, void* text) {
  static_cast<std::string*>(text)->assign(entry->desc == nullptr ? "" : entry->desc);
  return 1;  // stop here
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

}  // namespace

std::unique_lock<std::mutex> library_lock() {
  static std::mutex mutex;
  std::unique_lock<std::mutex> lock(mutex);
  static const bool prepared = H5dont_atexit() >= 0 && H5Eset_auto2(H5E_DEFAULT, nullptr, nullptr) >= 0;
  static_cast<void>(prepared);
  return lock;
}

std::string library_reason() {
  std::string text;
  H5Ewalk2(H5E_DEFAULT, H5E_WALK_UPWARD, keep_first, &text);
  // I/O errors carry the system's number among buffer addresses and times that help nobody.
  constexpr std::string_view kErrno = "errno = ";
  if (const std::size_t at = text.find(kErrno); at != std::string::npos) {
    const int number = std::atoi(text.c_str() + at + kErrno.size());
    if (number != 0) return system_reason(number);
  }
  return text.empty() ? "unknown HDF5 error" : "HDF5: " + text;
}

OutputFile::~OutputFile() {
  if (id_ < 0) return;
  divert_to_memory(id_);
  H5Fclose(id_);
}

void OutputFile::close(const std::filesystem::path& path) {
  // Most write errors come here, where the file can still be thrown away in order.
  const bool flushed = H5Fflush(id_, H5F_SCOPE_LOCAL) >= 0;
  require<IoError>(flushed, "cannot write {}: {}", path.string(), library_reason());
  const herr_t closed = H5Fclose(std::exchange(id_, -1));
  require<IoError>(closed >= 0, "cannot finish {}: {}", path.string(), library_reason());
}

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
    case DType::BF16:
      break;
  }
  fail_without_type(t);
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
    case DType::BF16:
      break;
  }
  fail_without_type(t);
}

hid_t space_of(const Shape& shape) {
  if (shape.rank() == 0) return H5Screate(H5S_SCALAR);
  std::array<hsize_t, Shape::kMaxRank> dims{};
  for (int i = 0; i < shape.rank(); ++i) dims[idx(i)] = static_cast<hsize_t>(shape[i]);
  return H5Screate_simple(shape.rank(), dims.data(), nullptr);
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

hid_t file_properties() {
  const hid_t creation = H5Pcreate(H5P_FILE_CREATE);
  if (creation >= 0) H5Pset_obj_track_times(creation, 0);  // the root group's
  return creation;
}

void create_groups(hid_t file, const std::string& dataset, std::set<std::string>& made,
                   const std::filesystem::path& path) {
  // One by one: those that the library adds by itself carry the time, and equal content should give equal files.
  const Handle properties(H5Pcreate(H5P_GROUP_CREATE), H5Pclose);
  H5Pset_obj_track_times(properties.get(), 0);
  for (std::size_t slash = dataset.find('/', 1); slash != std::string::npos; slash = dataset.find('/', slash + 1)) {
    const std::string name = dataset.substr(0, slash);
    if (!made.insert(name).second) continue;
    const Handle group(H5Gcreate2(file, name.c_str(), H5P_DEFAULT, properties.get(), H5P_DEFAULT), H5Gclose);
    require<IoError>(group.good(), "cannot create {} in {}: {}", name, path.string(), library_reason());
  }
}

}  // namespace emox::hdf5
