#include "parallel/checkpoint/hdf5_file.h"

#include <algorithm>
#include <array>
#include <utility>

#include "parallel/checkpoint/hdf5_library.h"
#include "parallel/checkpoint/layout.h"
#include "runtime/core/error.h"
#include "runtime/core/idx.h"

namespace emox {

using namespace hdf5;

namespace {

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
    char* data = static_cast<char*>(view.raw()) + idx(box.begin - begin) * size_of(view.dtype());
    const bool moved = memory.good() &&
                       // All of a scalar is selected already.
                       (shape.rank() == 0 || H5Sselect_hyperslab(space.get(), H5S_SELECT_SET, start.data(), nullptr,
                                                                 count.data(), nullptr) >= 0) &&
                       move(memory.get(), space.get(), data) >= 0;
    // Here, because the next call of the library, even one that closes a handle, forgets the reason.
    if (!moved) fail<IoError>("cannot {}: {}", task, library_reason());
  }
}

/// Where the elements are in the file. The default layout is one stretch, and reading goes by that.
std::int64_t stretch_of(hid_t dataset, const ManifestTensor& entry, const std::filesystem::path& path) {
  if (entry.begin == entry.end) return 0;
  const Handle properties(H5Dget_create_plist(dataset), H5Pclose);
  const bool contiguous = properties.good() && H5Pget_layout(properties.get()) == H5D_CONTIGUOUS;
  const haddr_t offset = contiguous ? H5Dget_offset(dataset) : HADDR_UNDEF;
  require<IoError>(offset != HADDR_UNDEF, "{} in {} does not lie in one stretch", entry.dataset, path.string());
  return static_cast<std::int64_t>(offset);
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
  for (int i = 0; i < entry.shape.rank(); ++i) extents[idx(i)] = entry.shape[i];
  write_attribute(dataset, "begin", {}, &entry.begin, task);
  write_attribute(dataset, "end", {}, &entry.end, task);
  write_attribute(dataset, "shape", {entry.shape.rank()}, extents.data(), task);
}

/// For transfer: from memory into the entry's dataset.
auto write_to(hid_t dataset, const ManifestTensor& entry) {
  return [dataset, type = memory_type(entry.dtype)](hid_t memory, hid_t file, const void* data) {
    return H5Dwrite(dataset, type, memory, file, H5P_DEFAULT, data);
  };
}

/// Small datasets are written only here, and nothing later would tell that they could not be.
void close_dataset(Handle& set, const std::string& task) {
  if (!set.close()) fail<IoError>("cannot {}: {}", task, library_reason());
}

}  // namespace

Hdf5File::Hdf5File(std::filesystem::path path, bool write) : path_(std::move(path)), write_(write) {
  const auto lock = library_lock();
  const Handle access(access_properties(), H5Pclose);
  const Handle creation(file_properties(), H5Pclose);
  id_ = write ? H5Fcreate(path_.c_str(), H5F_ACC_TRUNC, creation.get(), access.get())
              : H5Fopen(path_.c_str(), H5F_ACC_RDONLY, access.get());
  require<IoError>(id_ >= 0, "cannot {} {}: {}", write ? "create" : "open", path_.string(), library_reason());
}

Hdf5File::~Hdf5File() {
  if (id_ < 0) return;
  const auto lock = library_lock();
  if (write_)
    const OutputFile abandoned(id_);
  else
    H5Fclose(id_);
}

std::int64_t Hdf5File::create_dataset(const ManifestTensor& entry) {
  create_groups(id_, entry.dataset, groups_, path_);
  const Shape shape = entry.dataset_shape();
  const Handle properties(H5Pcreate(H5P_DATASET_CREATE), H5Pclose);
  H5Pset_fill_time(properties.get(), H5D_FILL_TIME_NEVER);  // every element is written, once
  H5Pset_obj_track_times(properties.get(), 0);              // as for groups
  const Handle space(space_of(shape), H5Sclose);
  const hid_t set = H5Dcreate2(id_, entry.dataset.c_str(), file_type(entry.dtype), space.get(), H5P_DEFAULT,
                               properties.get(), H5P_DEFAULT);
  require<IoError>(set >= 0, "cannot create {} in {}: {}", entry.dataset, path_.string(), library_reason());
  return set;
}

std::int64_t Hdf5File::write(const ManifestTensor& entry, std::span<const TensorView> blocks) {
  const auto lock = library_lock();
  Handle set(create_dataset(entry), H5Dclose);
  const std::string task = fmt::format("write {} to {}", entry.dataset, path_.string());
  if (!entry.whole()) write_place_in_array(set.get(), entry, task);
  std::int64_t at = 0;
  for (const TensorView& block : blocks) {
    transfer(entry.dataset_shape(), at, block, task, write_to(set.get(), entry));
    at += block.numel();
  }
  const std::int64_t offset = stretch_of(set.get(), entry, path_);
  close_dataset(set, task);
  return offset;
}

void Hdf5File::create_whole(const ManifestTensor& entry) {
  const auto lock = library_lock();
  Handle set(create_dataset(entry), H5Dclose);
  close_dataset(set, fmt::format("create {} in {}", entry.dataset, path_.string()));
}

void Hdf5File::write_slice(const ManifestTensor& entry, const ArraySlice& slice) {
  const auto lock = library_lock();
  Handle set(H5Dopen2(id_, entry.dataset.c_str(), H5P_DEFAULT), H5Dclose);
  require<IoError>(set.good(), "cannot find {} in {}: {}", entry.dataset, path_.string(), library_reason());
  const std::string task = fmt::format("write {} to {}", entry.dataset, path_.string());
  transfer(entry.dataset_shape(), slice.begin, slice.view, task, write_to(set.get(), entry));
  close_dataset(set, task);
}

void Hdf5File::write_note(const char* name, const std::string& text) {
  const auto lock = library_lock();
  const Handle type(H5Tcopy(H5T_C_S1), H5Tclose), space(H5Screate(H5S_SCALAR), H5Sclose);
  // Fixed length with the closing zero, so that an empty text is one too.
  const bool prepared = H5Tset_size(type.get(), text.size() + 1) >= 0 && H5Tset_cset(type.get(), H5T_CSET_UTF8) >= 0;
  const Handle attribute(
      prepared ? H5Acreate2(id_, name, type.get(), space.get(), H5P_DEFAULT, H5P_DEFAULT) : hid_t{-1}, H5Aclose);
  require<IoError>(attribute.good() && H5Awrite(attribute.get(), type.get(), text.c_str()) >= 0,
                   "cannot write the attribute {} of {}: {}", name, path_.string(), library_reason());
}

std::int64_t Hdf5File::open_dataset(const ManifestTensor& entry) const {
  const hid_t set = H5Dopen2(id_, entry.dataset.c_str(), H5P_DEFAULT);
  require<IoError>(set >= 0, "cannot find {} in {}: {}", entry.dataset, path_.string(), library_reason());
  if (fits(set, entry)) return set;
  H5Dclose(set);
  fail<IoError>("{} in {} is not {} {}", entry.dataset, path_.string(), name_of(entry.dtype),
                entry.dataset_shape().str());
}

std::int64_t Hdf5File::offset_of(const ManifestTensor& entry) {
  const auto lock = library_lock();
  const Handle set(open_dataset(entry), H5Dclose);
  return stretch_of(set.get(), entry, path_);
}

void Hdf5File::read(const ManifestTensor& entry, std::span<const ArraySlice> slices) {
  const auto lock = library_lock();
  const Handle set(open_dataset(entry), H5Dclose);
  const std::string task = fmt::format("read {} from {}", entry.dataset, path_.string());
  for (const ArraySlice& slice : slices)
    transfer(entry.dataset_shape(), slice.begin - entry.begin, slice.view, task,
             [&](hid_t memory, hid_t file, void* data) {
               return H5Dread(set.get(), memory_type(entry.dtype), memory, file, H5P_DEFAULT, data);
             });
}

void Hdf5File::close() {
  const auto lock = library_lock();
  OutputFile(std::exchange(id_, -1)).close(path_);
}

}  // namespace emox
