// What the links between ranks carry when all ranks exchange with their peers at once, as dispatch does: for `emox
// doctor`.
#pragma once

#include <nlohmann/json_fwd.hpp>

#include "launch/run/session.h"

namespace emox {

/// By class of peers ("same_node", "other_nodes"; those that there are): "peers" of rank 0, "gb_s" that each rank sends
/// with 4 MiB a peer (the slowest rank's), "small_us" of an exchange of 256 bytes a peer. Takes about two seconds in
/// all. Collective; the same on all ranks.
nlohmann::ordered_json link_rates(Session& session);

}  // namespace emox
