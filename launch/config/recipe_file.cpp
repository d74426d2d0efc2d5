#include "launch/config/recipe_file.h"

#include <fmt/format.h>

#include <algorithm>
#include <boost/program_options.hpp>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <sstream>

#include "launch/config/fields.h"
#include "launch/config/nearest.h"
#include "runtime/core/error.h"
#include "runtime/core/quoted.h"
#include "runtime/files/files.h"

namespace emox {
namespace {

namespace po = boost::program_options;
namespace fs = std::filesystem;

// One `key = value`, and where it was written.
struct Setting {
  std::string name, value, origin;
};

po::options_description describe(const std::vector<Field>& fields) {
  po::options_description description;
  for (const Field& field : fields) description.add_options()(field.name().c_str(), po::value<std::string>());
  return description;
}

std::string trimmed(const std::string& text) {
  const auto first = text.find_first_not_of(" \t\r\n");
  return first == std::string::npos ? "" : text.substr(first, text.find_last_not_of(" \t\r\n") - first + 1);
}

// Boost's parser does not say where a key stood, and drops sections without keys. This walk over the same grammar gives
// the lines of every key and names the first line that is none of: blank, comment, [section], key = value.
std::map<std::string, std::vector<int>> key_lines(const std::string& text, const std::string& file) {
  std::map<std::string, std::vector<int>> lines;
  std::istringstream in(text);
  std::string line, prefix;
  const std::vector<std::string> sections = section_names();
  for (int number = 1; std::getline(in, line); ++number) {
    line = trimmed(line.substr(0, line.find('#')));
    if (line.empty()) continue;
    if (line.front() == '[' && line.back() == ']') {
      const std::string section = line.substr(1, line.size() - 2);
      require<UsageError>(std::count(sections.begin(), sections.end(), section) > 0,
                          "unknown section [{}] in {}:{}: did you mean [{}]?", section, file, number,
                          nearest(section, sections));
      prefix = section + ".";
    } else {
      const auto equals = line.find('=');
      require<UsageError>(equals != std::string::npos && !trimmed(line.substr(0, equals)).empty(),
                          "{}:{}: cannot read '{}': write [section] or key = value", file, number, line);
      lines[prefix + trimmed(line.substr(0, equals))].push_back(number);
    }
  }
  return lines;
}

[[noreturn]] void unknown_key(const std::string& name, const std::string& place) {
  fail<UsageError>("unknown key {} {}: did you mean {}?", name, place, nearest_key(name, key_names()));
}

std::vector<Setting> file_settings(const std::string& text, const std::string& file,
                                   const po::options_description& description) {
  const auto lines = key_lines(text, file);
  std::vector<Setting> settings;
  std::map<std::string, std::size_t> seen;
  try {
    std::istringstream in(text);
    for (const auto& option : po::parse_config_file(in, description, /*allow_unregistered=*/true).options) {
      const auto& where = lines.at(option.string_key);
      const std::string origin = fmt::format("{}:{}", file, where.at(seen[option.string_key]++));
      if (option.unregistered) unknown_key(option.string_key, "in " + origin);
      const std::string value = option.value.empty() ? "" : option.value.front();
      try {
        settings.push_back({option.string_key, unquoted_text(value), origin});
      } catch (const UsageError& e) {
        fail<UsageError>("{} ({}): {}", option.string_key, origin, e.message());
      }
    }
  } catch (const po::error& error) {
    fail<UsageError>("cannot read {}: {}", file, error.what());
  }
  return settings;
}

std::vector<Setting> command_line_settings(const std::vector<std::string>& overrides,
                                           const po::options_description& description) {
  std::vector<Setting> settings;
  try {
    using Style = po::command_line_style::style_t;
    // No guessing from beginnings: a key added later must not change what a script means.
    const int style = Style::allow_long | Style::long_allow_adjacent | Style::long_allow_next;
    const auto parsed = po::command_line_parser(overrides).options(description).style(style).allow_unregistered().run();
    for (const auto& option : parsed.options) {
      if (option.unregistered) unknown_key(option.string_key, "on the command line");
      require<UsageError>(option.position_key < 0 && !option.string_key.empty(),
                          "cannot read '{}' on the command line: write --section.key=value",
                          option.original_tokens.empty() ? "" : option.original_tokens.front());
      settings.push_back({option.string_key, option.value.empty() ? "" : option.value.front(), "command line"});
    }
  } catch (const po::error& error) {
    fail<UsageError>("cannot read the command line: {}", error.what());
  }
  return settings;
}

// `repeats`: the last of several settings of one key counts (command line); otherwise that is a mistake in the file.
void apply(const std::vector<Field>& fields, const std::vector<Setting>& settings, bool repeats) {
  std::map<std::string, std::string> first;
  for (const Setting& setting : settings) {
    // The parsers let only known names through.
    const Field& field =
        *std::find_if(fields.begin(), fields.end(), [&](const Field& f) { return f.name() == setting.name; });
    const auto [previous, is_first] = first.emplace(setting.name, setting.origin);
    if (is_first) field.clear_list();
    require<UsageError>(is_first || repeats || field.is_list(), "{} is set twice, at {} and {}; keep one", setting.name,
                        previous->second, setting.origin);
    field.set(setting.value, setting.origin);
  }
}

constexpr std::string_view kByteOrderMark = "\xEF\xBB\xBF";  // some editors begin UTF-8 with it

std::string read_recipe_text(const std::string& path) {
  const fs::path file(path);
  const auto [text, error] = try_read_text(file);
  if (error == 0) return text.starts_with(kByteOrderMark) ? text.substr(kByteOrderMark.size()) : text;
  require<UsageError>(error == ENOENT || error == ENOTDIR, "cannot read the recipe {}: {}", path, std::strerror(error));
  std::error_code ignored;
  // The likely mistakes: a misspelt name, or a recipe named without its directory.
  std::vector<std::string> others;
  const fs::path directory = file.has_parent_path() ? file.parent_path() : fs::path("launch/recipes");
  for (fs::directory_iterator it(directory, ignored), end; !ignored && it != end; it.increment(ignored))
    if (it->path().extension() == ".ini") others.push_back(it->path().string());
  std::sort(others.begin(), others.end());
  const std::string wanted = (directory / file.filename()).string();
  fail<UsageError>("cannot read the recipe {}: no such file{}", path,
                   others.empty() ? "" : fmt::format("; did you mean {}?", nearest(wanted, others)));
}

}  // namespace

Recipe parse_recipe(const std::string& text, const std::string& name, const std::vector<std::string>& overrides) {
  Recipe recipe;
  const std::vector<Field> fields = fields_of(recipe);
  const po::options_description description = describe(fields);
  apply(fields, file_settings(text, name, description), /*repeats=*/false);
  apply(fields, command_line_settings(overrides, description), /*repeats=*/true);
  if (recipe.run.name.empty()) recipe.run.name = fs::path(name).stem().string();
  if (recipe.run.dir.empty()) recipe.run.dir = "runs/" + recipe.run.name;
  ModelConfig& m = recipe.model;
  if (!m.is_moe() && m.dense_ff == 0) m.dense_ff = m.top_k * m.expert_ff;
  return recipe;
}

// A run directory, or a study's, that was renamed or copied: its recipe.ini still gives the old name, as its run.json
// does. A directory that somebody wrote into the file instead is obeyed.
bool gives_the_old_directory(const fs::path& recipe, const std::string& directory) {
  const fs::path here = recipe.has_parent_path() ? recipe.parent_path() : fs::path(".");
  std::error_code ignored;
  if (recipe.filename() != "recipe.ini" || fs::equivalent(here, directory, ignored)) return false;
  std::ifstream in(here / "run.json");
  if (!in.is_open()) return fs::is_directory(here / "checkpoints") || fs::is_directory(here / "cells");
  const auto jobs = nlohmann::json::parse(in, nullptr, false);
  if (!jobs.is_array() || jobs.empty()) return true;
  const auto recorded = nlohmann::json::json_pointer("/recipe/run/dir");
  return !jobs.back().contains(recorded) || jobs.back()[recorded] == directory;
}

Recipe load_recipe(const std::string& path, const std::vector<std::string>& overrides) {
  Recipe recipe = parse_recipe(read_recipe_text(path), path, overrides);
  const bool given =
      std::any_of(overrides.begin(), overrides.end(), [](const std::string& o) { return o.starts_with("--run.dir"); });
  if (!given && gives_the_old_directory(path, recipe.run.dir)) {
    const fs::path here = fs::path(path).parent_path();
    recipe.run.dir = here.empty() ? "." : here.string();
  }
  return recipe;
}

bool sets_key(const std::string& path, const std::vector<std::string>& overrides, const std::string& key) {
  Recipe recipe;
  const po::options_description description = describe(fields_of(recipe));
  const auto in_file = file_settings(read_recipe_text(path), path, description);
  const auto in_command = command_line_settings(overrides, description);
  const auto is_it = [&](const Setting& s) { return s.name == key; };
  return std::any_of(in_file.begin(), in_file.end(), is_it) || std::any_of(in_command.begin(), in_command.end(), is_it);
}

std::string to_ini(const Recipe& recipe, bool comments) {
  Recipe copy = recipe;
  std::string text, section;
  for (const Field& field : fields_of(copy)) {
    if (field.section() != section) {
      text += fmt::format("{}[{}]\n", section.empty() ? "" : "\n", field.section());
      section = field.section();
    }
    if (comments) text += fmt::format("# {} ({})\n", field.help(), field.allowed());
    for (const std::string& value : field.values())
      text += value.empty() ? fmt::format("{} =\n", field.key())
                            : fmt::format("{} = {}\n", field.key(), quoted_text(value));
  }
  return text;
}

nlohmann::ordered_json to_json(const Recipe& recipe) {
  Recipe copy = recipe;
  nlohmann::ordered_json json;
  for (const Field& field : fields_of(copy)) json[field.section()][field.key()] = field.json();
  return json;
}

}  // namespace emox
