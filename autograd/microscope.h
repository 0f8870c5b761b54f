// The gradient microscope: what is wrong with a gradient that failed its check, found by testing hypotheses on numbers.
#pragma once
#include <string>
#include <string_view>
#include <vector>

#include "autograd/gradcheck.h"

namespace sinkhorn {

/// Ways in which gradients are wrong, in the order in which they are named where several fit equally well: what keeps
/// the rest from being seen comes first, then the simplest.
enum class Cause {
  failed,             // there is nothing to compare: an exception, a missing tensor, an input written to
  not_finite,         // NaN or infinity, on either side
  wrong_type,         // not f64
  no_flow,            // nothing, or nothing but zeros
  kink,               // the numeric derivative itself means nothing here
  not_repeatable,     // a second run gives something else
  ignores_incoming,   // the incoming gradient (dy) does not come in, or not in proportion
  sign,               // -1 x numeric
  factor,             // c x numeric
  swapped,            // the gradient of another input
  transposed,         // the last two axes exchanged
  axes_permuted,      // other axes exchanged
  reversed,           // back to front along an axis
  rotated,            // shifted in a circle along an axis
  missing_sum,        // not summed over the axes along which the input was stretched
  not_stretched,      // not stretched along the axes that were summed
  reshaped,           // the right numbers in their order, under another shape
  wrong_shape,        // another shape, and nothing else recognised
  permuted,           // the right numbers in another order
  part,               // right but for some rows, columns, a triangle or a few elements
  precision,          // right to about six digits
  factor_along_axis,  // another factor for each row or column
  offset,             // a constant added
  missing_term,       // off by a multiple of a known tensor in each row: a term was left out
};
/// "factor", "missing-sum", ...: as in `gradcheck --plant` and JSON.
std::string_view name_of(Cause cause);
/// A line for readers, such as "a constant factor".
std::string_view title_of(Cause cause);

/// A hypothesis that fits the numbers.
struct Finding {
  Cause cause;
  std::string evidence;  // sentences: what was tested, and what it may mean
  double fit = 0;  // residual: largest |analytic - explained| over the largest |numeric| of the tensor; 0 is exact
};

struct ComparedElement {
  std::vector<std::int64_t> index;
  double analytic = 0, numeric = 0;
  double error = 0;  // of ComparedGradients
};

/// One input whose gradient is wrong.
struct WrongGradient {
  std::string name;
  Shape shape;                         // of the input
  Tensor analytic, numeric;            // as compared; analytic may be empty
  Tensor error;                        // f64 of the input's shape, element by element; empty if the shapes differ
  std::int64_t wrong = 0;              // elements that disagree
  std::vector<ComparedElement> worst;  // the worst first, at most eight
  std::vector<Finding> findings;       // the best first; none if nothing fits
  std::vector<std::string> notes;      // what else the numbers show, without naming a cause

  bool is_explained() const { return !findings.empty(); }
};

struct Diagnosis {
  std::vector<Finding> findings;     // of the check as a whole
  std::vector<WrongGradient> wrong;  // in the order of the inputs
  std::vector<std::string> right;    // names of the inputs whose gradients agree

  bool is_fine() const { return findings.empty() && wrong.empty(); }
  /// The first finding; null if all is fine or nothing fits.
  const Finding* likely() const;
};

/// Looks at both sides of a check. A cause is named only if it leaves at most a millionth of the tensor's largest
/// numeric gradient, and at most a hundredth of the error, unexplained, and if the elements are more than what it could
/// always be fitted to.
Diagnosis diagnose(const ComparedGradients& gradients);

}  // namespace sinkhorn
