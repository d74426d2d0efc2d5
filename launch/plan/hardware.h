// What a machine does, for plans of runs that are not on it: rates and sizes, each with where it comes from.
#pragma once

#include <filesystem>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

#include "runtime/core/dtype.h"

namespace emox {

/// A number of a hardware file. tag: "measured", "datasheet" or "assumed"; source: by what, when, or whose.
struct Figure {
  double value = 0;
  std::string tag = "assumed", source;
};

/// What the kinds of ops reach, as fractions of the rate of a large product (the first four) or of a large copy.
struct OpRates {
  double width = 0;  ///< model.d_model of the model that was measured
  double dense = 0, experts = 0, head = 0, attention = 0;
  double rows = 0, optimizer = 0;
  double layer_s = 0;  ///< seconds of a layer, a pass and a micro-batch that no op accounts for: launches, threads
};

/// Between a rank and its peers, when all ranks exchange at once.
struct Link {
  Figure bytes_s;    ///< that a rank sends
  Figure latency_s;  ///< of a small exchange with all peers
};

/// Memory and rates are those of a rank; a rank is a GPU, or one of `ranks_per_node` processes of `threads` threads
/// that were measured at the same time.
struct Hardware {
  std::string name, note;
  bool gpu = false;
  DType precision = DType::F32;
  int ranks_per_node = 1, threads = 1;
  Figure memory;  ///< bytes: of a GPU, or of a node's host memory
  Figure base;    ///< bytes that a process takes beside what emox allocates; 0 for GPUs (memory.h estimates those)
  Figure gemm;    ///< FLOP/s of a large product
  Figure peak;  ///< FLOP/s that MFU counts against: the datasheet's dense peak; the large product's where there is none
  Figure copy;  ///< bytes/s of a large copy, read and write counted
  std::string ops_tag, ops_source;
  std::vector<OpRates> ops;  ///< one or more, by rising width
  Link same_node, other_nodes;
  Figure write, read;  ///< bytes/s between a node and the file system
  double watts = 0;    ///< of a rank with its share of the node; 0: not known
};

/// A file, or the name of one of those that come with emox (hardware_names()). UsageError: what is wrong in it, and the
/// nearest name where there is no such file.
Hardware load_hardware(const std::string& name_or_file);
/// Of those that come with emox; empty where they are not found.
std::vector<std::string> hardware_names();

/// UsageError names `file` and the key that is missing, unknown, or has no sensible value.
Hardware hardware_from_json(const nlohmann::json& json, const std::string& file);
nlohmann::ordered_json to_json(const Hardware& hardware);

/// Between measured widths on a line over the logarithm of the width; beyond them the nearest one.
OpRates rates_at(const Hardware& hardware, double width);

}  // namespace emox
