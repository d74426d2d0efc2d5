// Student's t: how wide an interval is when the spread is known from a few draws only.
#pragma once

#include <cstdint>

namespace emox {

/// The 97.5 % quantile of Student's t with so many degrees of freedom, within 2e-4: a 95 % interval is mean +- this
/// many standard errors. Infinite for fewer than one; falls to 1.96.
double student_quantile(std::int64_t degrees_of_freedom);

}  // namespace emox
