// A gradient checker: what the exercise is to write. All tensors are f64.
#pragma once
#include <functional>

#include "autograd/rng.h"

namespace sinkhorn::lesson {

/// A function of a tensor (its value has any shape), and what somebody claims to be the gradient of the sum of
/// dy * value(x) by x.
struct Claim {
  std::function<Tensor(const Tensor& x)> value;
  std::function<Tensor(const Tensor& x, const Tensor& dy)> gradient;
};

struct Verdict {
  bool right = false;
  std::int64_t where = -1;  // if wrong: the element of x (0 ... count-1) whose gradient is furthest off
};

/// Whether the claim is right at x. A wrong element is off by at least one part in 10,000, or NaN, or infinite, or the
/// gradient does not have the shape of x (then `where` may be anything). x may be changed on the way, but is as it was,
/// to the last bit, in the end. `rng` is there for numbers drawn at random: uniform(rng, shape, low, high, DType::f64).
Verdict check_gradient(const Claim& claim, const Tensor& x, Rng rng);

}  // namespace sinkhorn::lesson
