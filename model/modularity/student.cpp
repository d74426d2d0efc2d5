#include "model/modularity/student.h"

#include <iterator>
#include <limits>

namespace emox {

double student_quantile(std::int64_t degrees_of_freedom) {
  // Fisher's expansion in 1 / degrees of freedom is too coarse for the first ten.
  constexpr double kFew[] = {12.706205, 4.302653, 3.182446, 2.776445, 2.570582,
                             2.446912,  2.364624, 2.306004, 2.262157, 2.228139};
  if (degrees_of_freedom < 1) return std::numeric_limits<double>::infinity();
  if (degrees_of_freedom <= static_cast<std::int64_t>(std::size(kFew))) return kFew[degrees_of_freedom - 1];
  const double z = 1.959963984540054, z2 = z * z, n = static_cast<double>(degrees_of_freedom);
  const double first = z * (z2 + 1) / 4, second = z * ((5 * z2 + 16) * z2 + 3) / 96,
               third = z * (((3 * z2 + 19) * z2 + 17) * z2 - 15) / 384;
  return z + first / n + second / (n * n) + third / (n * n * n);
}

}  // namespace emox
