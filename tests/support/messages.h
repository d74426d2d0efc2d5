// What errors say.
#pragma once

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "runtime/core/error.h"

namespace emox::test {

/// The message of the UsageError that `body` throws; "(no UsageError)" when it throws none.
template <typename Body>
std::string usage_error(Body&& body) {
  try {
    body();
  } catch (const UsageError& error) {
    return error.message();
  }
  return "(no UsageError)";
}

/// Every part occurs in the text.
inline void expect_parts(const std::string& text, const std::vector<std::string>& parts) {
  for (const std::string& part : parts)
    EXPECT_NE(text.find(part), std::string::npos) << "no '" << part << "' in:\n" << text;
}

}  // namespace emox::test
