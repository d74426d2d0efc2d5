// Names that other programs give to a key of ours: `lr`, `hidden_size`, `num_experts_per_tok`, ...
#pragma once

#include <span>
#include <string_view>
#include <utility>

namespace emox {

/// Pairs of a name, in small letters with underscores, and the key that it means here.
std::span<const std::pair<std::string_view, std::string_view>> key_aliases();

/// The key that a name without its section means here ("LR", "batch-size"); empty when nobody calls a key so.
std::string_view key_of_alias(std::string_view name);

/// The word that another one means here as the value of a key ("gpu": cuda, "bfloat16": bf16); empty when none does.
std::string_view value_of_alias(std::string_view value);

}  // namespace emox
