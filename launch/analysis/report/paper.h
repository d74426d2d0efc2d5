// What the paper reports for smaller and smaller parts of its experts, to stand beside one's own figures.
#pragma once

namespace emox {

/// Accuracy in percent of the models of 1T tokens with `kept` of 128 experts, without fine-tuning.
struct PublishedAccuracy {
  int kept;
  double emo_mmlu, emo_mmlu_pro, emo_gsm8k;
  double standard_mmlu, standard_mmlu_pro, standard_gsm8k;
};

inline constexpr int kPublishedExperts = 128;
inline constexpr const char* kPublishedSource =
    "arXiv 2605.06663v2: EMO from its Table 3; the standard MoE from the labels of its Figure 3, which do not name the "
    "number of experts: assigned here in falling order";
inline constexpr PublishedAccuracy kPublished[] = {
    {128, 42.8, 18.5, 12.0, 42.4, 19.3, 13.9}, {64, 42.5, 18.2, 11.0, 39.4, 16.8, 4.9},
    {32, 41.4, 17.6, 11.7, 30.8, 13.2, 2.9},   {16, 39.9, 16.6, 12.2, 24.6, 9.9, 2.4},
    {8, 36.1, 14.7, 6.9, 22.7, 9.5, 2.3},
};

}  // namespace emox
