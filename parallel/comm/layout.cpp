#include "parallel/comm/layout.h"

#include <map>

namespace emox {

std::vector<int> number_nodes(std::span<const int> names) {
  std::map<int, int> numbers;
  std::vector<int> nodes;
  for (const int name : names)
    nodes.push_back(numbers.try_emplace(name, static_cast<int>(numbers.size())).first->second);
  return nodes;
}

}  // namespace emox
