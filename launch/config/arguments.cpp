#include "launch/config/arguments.h"

#include <fmt/format.h>

#include <algorithm>

#include "launch/config/aliases.h"
#include "launch/config/fields.h"
#include "launch/config/nearest.h"
#include "runtime/core/error.h"

namespace emox {
namespace {

bool contains(const std::vector<std::string>& names, const std::string& name) {
  return std::find(names.begin(), names.end(), name) != names.end();
}

[[noreturn]] void unknown_option(const std::string& name, const ArgumentRules& rules) {
  std::vector<std::string> names{"--help"};
  names.insert(names.end(), rules.flags.begin(), rules.flags.end());
  names.insert(names.end(), rules.options.begin(), rules.options.end());
  names.insert(names.end(), rules.lists.begin(), rules.lists.end());
  std::string guess = nearest(name, names);
  if (rules.overrides) {
    // --steps for --train.steps, --lr for --train.learning_rate: a key without its section is the likelier mistake when
    // one has exactly that name, here or in other programs.
    const std::vector<std::string> keys = key_names();
    const std::string_view bare = std::string_view(name).substr(std::min<std::size_t>(2, name.size()));
    const auto same = std::find_if(keys.begin(), keys.end(),
                                   [&](const std::string& key) { return key.substr(key.find('.') + 1) == bare; });
    if (same != keys.end())
      guess = fmt::format("--{}", *same);
    else if (const std::string_view meant = key_of_alias(bare); !meant.empty())
      guess = fmt::format("--{}", meant);
  }
  fail<UsageError>("{}: unknown option {}: did you mean {}?", rules.command, name, guess);
}

}  // namespace

bool is_rank_key(std::string_view name) {
  return name.starts_with("--parallel.") || name == "--train.threads" || name == "--run.device" ||
         name == "--train.precision";
}

Arguments parse_args(const std::vector<std::string>& args, const ArgumentRules& rules) {
  Arguments parsed;
  bool options_ended = false;
  for (std::size_t i = 0; i < args.size(); ++i) {
    const std::string& arg = args[i];
    if (options_ended || arg.size() < 2 || arg.front() != '-') {
      parsed.positional.push_back(arg);
      continue;
    }
    if (arg == "--") {
      options_ended = true;
      continue;
    }
    const auto equals = arg.find('=');
    const std::string name = arg.substr(0, equals);
    if (contains(rules.flags, name)) {
      require<UsageError>(equals == std::string::npos, "{}: {} takes no value (got '{}')", rules.command, name, arg);
      parsed.options[name] = "";
      continue;
    }
    const bool is_override =
        (rules.overrides || rules.rank_keys) && name.starts_with("--") && name.find('.') != std::string::npos;
    require<UsageError>(!is_override || rules.overrides || is_rank_key(name),
                        "{}: {} has no effect here: of the recipe's keys only --parallel.*, --train.threads, "
                        "--run.device and --train.precision have",
                        rules.command, name);
    const bool is_list = contains(rules.lists, name);
    if (!is_override && !is_list && !contains(rules.options, name)) unknown_option(name, rules);
    const bool next = equals == std::string::npos;
    require<UsageError>(!next || (i + 1 < args.size() && !args[i + 1].starts_with("--")),
                        "{}: {} needs a value: write {}=VALUE", rules.command, name, name);
    const std::string value = next ? args[++i] : arg.substr(equals + 1);
    if (is_override)
      parsed.overrides.push_back(fmt::format("{}={}", name, value));
    else if (is_list)
      parsed.lists[name].push_back(value);
    else
      parsed.options[name] = value;
  }
  require<UsageError>(parsed.positional.size() >= rules.min_positional, "{}: missing argument; usage: {} {}",
                      rules.command, rules.command, rules.positional);
  require<UsageError>(parsed.positional.size() <= rules.max_positional, "{}: unexpected argument '{}'; usage: {} {}",
                      rules.command,
                      parsed.positional.size() > rules.max_positional ? parsed.positional[rules.max_positional] : "",
                      rules.command, rules.positional);
  return parsed;
}

int whole_number(const char* command, const std::string& option, const std::string& text, int least) {
  std::size_t used = 0;
  int value = 0;
  try {
    value = std::stoi(text, &used);
  } catch (const std::exception&) {
    used = 0;
  }
  require<UsageError>(used == text.size() && used > 0 && value >= least,
                      "{}: {} = '{}' is not a whole number of at least {}", command, option, text, least);
  return value;
}

}  // namespace emox
