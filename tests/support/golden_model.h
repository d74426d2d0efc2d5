// The model of a checkpoint in the published layout.
#pragma once

#include <filesystem>

#include "model/transformer/config.h"

namespace emox::test {

/// As published: from its config.json, without pools, attention over the whole row.
ModelConfig published_config(const std::filesystem::path& file);

}  // namespace emox::test
