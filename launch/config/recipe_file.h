// Recipes as text: INI files, command-line overrides, the resolved file of a run directory, and JSON.
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

#include "launch/config/recipe.h"

namespace emox {

/// Reads FILE.ini, then applies `--section.key=value` overrides; run.name and run.dir get their defaults. A list key on
/// the command line replaces the file's list. Throws UsageError for anything unknown, misspelt, mistyped or out of
/// range; Recipe::validate() checks what keys mean together. The recipe.ini of a run directory that was renamed
/// or copied means the directory where it is, unless an override names another.
Recipe load_recipe(const std::string& path, const std::vector<std::string>& overrides = {});

/// As load_recipe, from text; `name` stands for the file in messages.
Recipe parse_recipe(const std::string& text, const std::string& name, const std::vector<std::string>& overrides = {});

/// Whether FILE.ini or an override gives the key a value, be it the default.
bool sets_key(const std::string& path, const std::vector<std::string>& overrides, const std::string& key);

/// Every key, resolved; parse_recipe() of it gives the same recipe, bit for bit. Comments say what each key means.
std::string to_ini(const Recipe& recipe, bool comments = false);

/// {"run": {"name": ...}, "model": ...}: the same, for run.json.
nlohmann::ordered_json to_json(const Recipe& recipe);

/// Every key of a section, or of all of them ("all"): default, what may be written, meaning; at most 80 columns wide.
/// Throws UsageError with the nearest name for an unknown section.
std::string help_text(const std::string& section);

}  // namespace emox
