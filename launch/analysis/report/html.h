// The report of a study: one HTML file that needs nothing else, and the same in a few lines of text.
#pragma once

#include <string>
#include <vector>

#include "launch/analysis/report/notes.h"
#include "launch/analysis/report/retention.h"

namespace emox {

/// Retention curves (mean and by domain), the figures under every plot, what each model is, EMO against the standard
/// MoE seed by seed, and the paper's figures beside them. A pure function: the same arguments give the same bytes.
/// Well-formed as XML, too. Figures that the rows lack are shown as missing. UsageError for rows without any.
std::string report_html(const std::vector<RetentionRow>& rows, const std::string& title, const StudyNotes& notes = {});

/// The first of its retention curves, the mean over domains, as an SVG file; empty when no experts were left out.
std::string retention_svg(const std::vector<RetentionRow>& rows, const StudyNotes& notes = {});

/// How the models' loss fell in training, as an SVG file; empty when notes.training is.
std::string training_svg(const StudyNotes& notes);

/// What the rows say, for a terminal of 80 columns: the full models, and what a quarter, an eighth ... of the experts
/// costs them.
std::string report_summary(const std::vector<RetentionRow>& rows, const StudyNotes& notes = {});

}  // namespace emox
