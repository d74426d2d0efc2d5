// The index of a checkpoint: a part of hdf5_file.h.
#include "parallel/checkpoint/hdf5_file.h"

#include <algorithm>
#include <array>
#include <map>
#include <optional>
#include <set>
#include <span>
#include <utility>
#include <vector>

#include "parallel/checkpoint/arrays.h"
#include "parallel/checkpoint/hdf5_library.h"
#include "parallel/checkpoint/layout.h"
#include "runtime/core/error.h"
#include "runtime/core/idx.h"
#include "runtime/files/files.h"

namespace emox {

using hdf5::Handle;
using hdf5::library_reason;

namespace {

namespace fs = std::filesystem;

/// A link of the index: a place in it, and where it leads.
struct Link {
  std::string file, object;
};

/// What the index consists of.
struct Tree {
  std::map<std::string, Link> links;  ///< by path: experts that are whole in a file, and other whole arrays
  std::map<std::string, const SavedArray*> in_parts;  ///< by path
};

/// "/model/layers/0/mlp/experts/3" for an array of that expert, otherwise nothing.
std::string expert_group(const SavedArray& a) {
  const std::string_view unit = unit_of(a.name);
  return unit == a.name ? "" : dataset_path(std::string(unit), "weight");
}

Tree tree_of(const std::vector<SavedArray>& arrays) {
  // The one file that holds all of an expert; "" where there are several, or the expert is in parts.
  std::map<std::string, std::string> home;
  for (const SavedArray& a : arrays) {
    const std::string group = expert_group(a);
    if (group.empty()) continue;
    const std::string file = a.pieces.size() == 1 ? a.pieces.front()->file : "";
    const auto [at, added] = home.emplace(group, file);
    if (!added && at->second != file) at->second.clear();
  }
  Tree tree;
  for (const SavedArray& a : arrays) {
    const ManifestTensor& first = *a.pieces.front();
    const auto expert = home.find(expert_group(a));
    if (expert != home.end() && !expert->second.empty())
      tree.links.emplace(expert->first, Link{first.file, expert->first});
    else if (a.pieces.size() == 1)
      tree.links.emplace(dataset_path(a.name, a.role), Link{first.file, first.dataset});
    else
      tree.in_parts.emplace(dataset_path(a.name, a.role), &a);
  }
  return tree;
}

/// Selects a box of the array; one call of the library.
bool select(hid_t space, const Box& box) {
  std::array<hsize_t, Shape::kMaxRank> start{}, count{};
  std::copy(box.start.begin(), box.start.end(), start.begin());
  std::copy(box.count.begin(), box.count.end(), count.begin());
  return H5Sselect_hyperslab(space, H5S_SELECT_SET, start.data(), nullptr, count.data(), nullptr) >= 0;
}

/// Adds a piece, which is one-dimensional in its file, to a virtual dataset. Its elements lie in the array as boxes.
bool map_piece(hid_t properties, hid_t array, const ManifestTensor& piece) {
  const Handle source(hdf5::space_of(piece.dataset_shape()), H5Sclose);
  for (const Box& box : boxes_of(piece.shape, piece.begin, piece.end)) {
    const hsize_t start = static_cast<hsize_t>(box.begin - piece.begin);
    const hsize_t count = static_cast<hsize_t>(box.end - box.begin);
    if (!select(array, box) ||
        H5Sselect_hyperslab(source.get(), H5S_SELECT_SET, &start, nullptr, &count, nullptr) < 0 ||
        H5Pset_virtual(properties, array, piece.file.c_str(), piece.dataset.c_str(), source.get()) < 0)
      return false;
  }
  return true;
}

void create_virtual(hid_t file, const std::string& path, const SavedArray& a, const std::string& name) {
  const Handle properties(H5Pcreate(H5P_DATASET_CREATE), H5Pclose);
  H5Pset_obj_track_times(properties.get(), 0);
  const Handle array(hdf5::space_of(a.shape), H5Sclose);
  for (const ManifestTensor* piece : a.pieces)
    if (!map_piece(properties.get(), array.get(), *piece))
      fail<IoError>("cannot map {} into {}: {}", path, name, library_reason());
  H5Sselect_all(array.get());
  const Handle set(
      H5Dcreate2(file, path.c_str(), hdf5::file_type(a.dtype), array.get(), H5P_DEFAULT, properties.get(), H5P_DEFAULT),
      H5Dclose);
  require<IoError>(set.good(), "cannot create {} in {}: {}", path, name, library_reason());
}

/// Where a link leads: nothing when there is no external link at that path.
std::optional<Link> link_at(hid_t file, const std::string& path) {
  H5L_info_t info{};
  if (H5Lget_info(file, path.c_str(), &info, H5P_DEFAULT) < 0 || info.type != H5L_TYPE_EXTERNAL) return std::nullopt;
  std::vector<char> value(info.u.val_size);
  const char *target = nullptr, *object = nullptr;
  if (H5Lget_val(file, path.c_str(), value.data(), value.size(), H5P_DEFAULT) < 0 ||
      H5Lunpack_elink_val(value.data(), value.size(), nullptr, &target, &object) < 0)
    return std::nullopt;
  return Link{target, object};
}

/// The sources of a virtual dataset, as (file, dataset), each once and in order; empty for another kind of dataset.
std::vector<std::pair<std::string, std::string>> sources_at(hid_t file, const std::string& path, const Shape& shape) {
  std::vector<std::pair<std::string, std::string>> sources;
  const Handle set(H5Dopen2(file, path.c_str(), H5P_DEFAULT), H5Dclose);
  if (!set.good()) return sources;
  const Handle properties(H5Dget_create_plist(set.get()), H5Pclose), space(H5Dget_space(set.get()), H5Sclose);
  const Handle wanted(hdf5::space_of(shape), H5Sclose);
  std::size_t count = 0;
  if (H5Pget_layout(properties.get()) != H5D_VIRTUAL || H5Sextent_equal(space.get(), wanted.get()) <= 0 ||
      H5Pget_virtual_count(properties.get(), &count) < 0)
    return sources;
  const auto text = [&](auto get, std::size_t i) {
    const ssize_t n = get(properties.get(), i, nullptr, 0);
    std::string value(n < 0 ? 0 : idx(n) + 1, '\0');
    if (n >= 0) get(properties.get(), i, value.data(), value.size());
    if (!value.empty()) value.pop_back();
    return value;
  };
  for (std::size_t i = 0; i < count; ++i) {
    std::pair<std::string, std::string> source{text(H5Pget_virtual_filename, i), text(H5Pget_virtual_dsetname, i)};
    if (sources.empty() || sources.back() != source) sources.push_back(std::move(source));
  }
  return sources;
}

/// The datasets that the manifest names exist in their files.
void check_sources(const fs::path& checkpoint, const Manifest& manifest) {
  std::map<std::string, std::vector<const ManifestTensor*>> by_file;
  for (const ManifestTensor& t : manifest.tensors) by_file[t.file].push_back(&t);
  for (const auto& [name, pieces] : by_file) {
    const std::string path = (checkpoint / name).string();
    const Handle access(hdf5::access_properties(), H5Pclose);
    const Handle file(H5Fopen(path.c_str(), H5F_ACC_RDONLY, access.get()), H5Fclose);
    require<IoError>(file.good(), "cannot open {}, which the index shows: {}", path, library_reason());
    for (const ManifestTensor* t : pieces) {
      const Handle set(H5Dopen2(file.get(), t->dataset.c_str(), H5P_DEFAULT), H5Dclose);
      require<IoError>(set.good(), "{} has no {}, which the index shows", path, t->dataset);
      const Handle space(H5Dget_space(set.get()), H5Sclose), wanted(hdf5::space_of(t->dataset_shape()), H5Sclose);
      require<IoError>(H5Sextent_equal(space.get(), wanted.get()) > 0, "{} in {} is not {}", t->dataset, path,
                       t->dataset_shape().str());
    }
  }
}

}  // namespace

void write_index(const fs::path& path, const Manifest& manifest) {
  const std::vector<SavedArray> arrays = arrays_of(manifest);
  const Tree tree = tree_of(arrays);
  {
    const auto lock = hdf5::library_lock();
    const Handle access(hdf5::access_properties(), H5Pclose), creation(hdf5::file_properties(), H5Pclose);
    const hid_t id = H5Fcreate(path.c_str(), H5F_ACC_TRUNC, creation.get(), access.get());
    require<IoError>(id >= 0, "cannot create {}: {}", path.string(), library_reason());
    hdf5::OutputFile file(id);
    std::set<std::string> groups;
    for (const auto& [place, link] : tree.links) {
      hdf5::create_groups(id, place, groups, path);
      if (H5Lcreate_external(link.file.c_str(), link.object.c_str(), id, place.c_str(), H5P_DEFAULT, H5P_DEFAULT) < 0)
        fail<IoError>("cannot link {} in {}: {}", place, path.string(), library_reason());
    }
    for (const auto& [place, array] : tree.in_parts) {
      hdf5::create_groups(id, place, groups, path);
      create_virtual(id, place, *array, path.string());
    }
    file.close(path);
  }
  sync_to_disk(path);
}

void check_index(const fs::path& checkpoint, const Manifest& manifest) {
  const std::string path = (checkpoint / kIndexFileName).string();
  const std::vector<SavedArray> arrays = arrays_of(manifest);
  const Tree tree = tree_of(arrays);
  const auto lock = hdf5::library_lock();
  check_sources(checkpoint, manifest);
  const Handle access(hdf5::access_properties(), H5Pclose);
  const Handle file(H5Fopen(path.c_str(), H5F_ACC_RDONLY, access.get()), H5Fclose);
  require<IoError>(file.good(), "cannot open {}: {}", path, library_reason());
  for (const auto& [place, link] : tree.links) {
    const auto found = link_at(file.get(), place);
    require<IoError>(found.has_value(), "{} has no link {}", path, place);
    require<IoError>(found->file == link.file && found->object == link.object,
                     "{}: {} leads to {} in {}, the manifest says {} in {}", path, place, found->object, found->file,
                     link.object, link.file);
  }
  for (const auto& [place, array] : tree.in_parts) {
    std::vector<std::pair<std::string, std::string>> wanted;
    for (const ManifestTensor* t : array->pieces) wanted.emplace_back(t->file, t->dataset);
    require<IoError>(sources_at(file.get(), place, array->shape) == wanted,
                     "{}: {} does not consist of the {} pieces in the manifest", path, place, wanted.size());
  }
}

}  // namespace emox
