// The machines that come with emox, and what is said of a file that is none.
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <string>

#include "launch/plan/hardware.h"
#include "runtime/core/error.h"

namespace emox {
namespace {

TEST(HardwareFiles, ThoseThatComeWithEmoxAreRead) {
  const auto names = hardware_names();
  EXPECT_GE(names.size(), 7U);
  for (const std::string& name : names) {
    const Hardware h = load_hardware(name);
    EXPECT_EQ(h.name, name);
    EXPECT_GE(h.peak.value, h.gemm.value);
    for (const Figure* f : {&h.gemm, &h.same_node.bytes_s, &h.other_nodes.bytes_s})
      EXPECT_FALSE(f->source.empty()) << name;
    EXPECT_EQ(to_json(hardware_from_json(nlohmann::json::parse(to_json(h).dump()), "again")), to_json(h));
  }
}

TEST(HardwareFiles, WhatIsWrongIsSaid) {
  const nlohmann::json good = nlohmann::json::parse(to_json(load_hardware("h200")).dump());
  const auto said = [](const nlohmann::json& json) -> std::string {
    try {
      (void)hardware_from_json(json, "file.json");
    } catch (const UsageError& e) {
      return e.message();
    }
    return "nothing";
  };
  EXPECT_EQ(said(good), "nothing");
  const auto changed = [&](const char* pointer, const nlohmann::json& value) {
    nlohmann::json j = good;
    j[nlohmann::json::json_pointer(pointer)] = value;
    return said(j);
  };
  const auto without = [&](const char* parent, const char* key) {
    nlohmann::json j = good;
    j[nlohmann::json::json_pointer(parent)].erase(key);
    return said(j);
  };
  const auto has = [](const std::string& text, const std::string& part) {
    EXPECT_NE(text.find(part), std::string::npos) << text;
  };
  has(changed("/kind", "tpu"), "kind = \"tpu\": use cpu or gpu");
  has(changed("/kind", "cpu"), "precision = \"bf16\"");
  has(changed("/gemm/value", -1), "gemm.value = -1");
  has(changed("/gemm/value", "fast"), "gemm.value = \"fast\"");
  has(changed("/gemm/tag", "guess"), "gemm.tag = guess: use measured, datasheet or assumed");
  has(changed("/gem", 1), "there is no gem; did you mean gemm?");
  has(changed("/ops/widths", nlohmann::json::array()), "ops.widths");
  has(changed("/ops/widths/0/dense", 0), "ops.widths[0].dense = 0");
  has(without("", "copy"), "copy is missing");
  has(without("/same_node", "latency_s"), "same_node.latency_s is missing");
  has(without("", "name"), "name is missing");
  has(said(nlohmann::json::array()), "is no object");
}

}  // namespace
}  // namespace emox
