#include "autograd/microscope.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>
#include <numeric>
#include <optional>
#include <set>
#include <sstream>

namespace sinkhorn {
namespace {

using Values = std::vector<double>;

constexpr double kFit = 1e-6;

struct Description {
  std::string_view name, title;
};
constexpr std::array<Description, 24> kDescriptions = {{
    {"failed", "the check could not run"},
    {"not-finite", "NaN or infinity"},
    {"wrong-type", "the wrong element type"},
    {"no-flow", "no gradient arrives"},
    {"kink", "the point lies on a kink or a tie"},
    {"not-repeatable", "two runs differ"},
    {"ignores-incoming", "the incoming gradient is not carried on"},
    {"sign", "the wrong sign"},
    {"factor", "a constant factor"},
    {"swapped", "the gradient of another input"},
    {"transposed", "transposed"},
    {"axes-permuted", "axes in another order"},
    {"reversed", "back to front"},
    {"rotated", "shifted along an axis"},
    {"missing-sum", "a missing sum over a broadcast axis"},
    {"not-stretched", "not stretched back"},
    {"reshaped", "the right numbers under another shape"},
    {"wrong-shape", "the wrong shape"},
    {"permuted", "the right numbers in another order"},
    {"part", "only a part is wrong"},
    {"precision", "right, but not to the last digits"},
    {"factor-along-axis", "another factor for each row or column"},
    {"offset", "a constant added"},
    {"missing-term", "a term is missing"},
}};

std::string digits(double x, int significant = 4) {
  std::array<char, 40> buffer{};
  (void)std::snprintf(buffer.data(), buffer.size(), "%.*g", significant, x);
  return buffer.data();
}

// As many digits as tell the factor from 1.
std::string factor_text(double factor) {
  const double from_one = std::abs(std::abs(factor) - 1);
  return digits(factor, from_one > 0 && from_one < 1e-3 ? 10 : 4);
}

std::string listed(const std::vector<std::int64_t>& numbers, std::size_t most = 6) {
  std::string result;
  for (std::size_t i = 0; i < std::min(numbers.size(), most); ++i)
    result += (i ? ", " : "") + std::to_string(numbers[i]);
  return numbers.size() > most ? result + ", ..." : result;
}

double largest(const Values& values) {
  double most = 0;
  for (double x : values) most = std::max(most, std::abs(x));
  return most;
}

double largest_difference(const Values& a, const Values& b) {
  double most = 0;
  for (std::size_t i = 0; i < a.size(); ++i) most = std::max(most, std::abs(a[i] - b[i]));
  return most;
}

std::vector<std::int64_t> index_of(const Shape& shape, std::int64_t element) {
  std::vector<std::int64_t> index(std::size_t(shape.rank()));
  for (int axis = shape.rank() - 1; axis >= 0; --axis) {
    index[std::size_t(axis)] = element % shape[axis];
    element /= shape[axis];
  }
  return index;
}

// Elements of `x` of this shape with its axes in another order: out[i0', i1', ...] with i' = the old axes order[0], ...
Values permuted(const Values& x, const Shape& shape, const std::vector<int>& order) {
  std::vector<std::int64_t> steps(order.size());
  for (std::size_t axis = 0; axis < order.size(); ++axis) steps[axis] = shape.product(order[axis] + 1, shape.rank());
  Values result;
  result.reserve(x.size());
  std::vector<std::int64_t> at(order.size(), 0);
  std::int64_t from = 0;
  for (std::size_t i = 0; i < x.size(); ++i) {
    result.push_back(x[std::size_t(from)]);
    for (std::size_t axis = order.size(); axis-- > 0;) {
      from += steps[axis];
      if (++at[axis] < shape[order[axis]]) break;
      from -= steps[axis] * shape[order[axis]];
      at[axis] = 0;
    }
  }
  return result;
}

// Index j along `axis` takes what stood at to_old(j).
template <class ToOld>
Values moved(const Values& x, const Shape& shape, int axis, ToOld to_old) {
  const std::int64_t extent = shape[axis], after = shape.product(axis + 1, shape.rank());
  Values result(x.size());
  for (std::size_t i = 0; i < x.size(); ++i) {
    const std::int64_t at = std::int64_t(i), j = at / after % extent;
    result[i] = x[std::size_t(at + (to_old(j) - j) * after)];
  }
  return result;
}

// True if `small` can be stretched to `large`, aligned at the last axis.
bool stretches(const Shape& small, const Shape& large) {
  if (small.rank() > large.rank()) return false;
  for (int axis = 1; axis <= small.rank(); ++axis)
    if (small[-axis] != large[-axis] && small[-axis] != 1) return false;
  return true;
}

// For every element of `large`, the element of `small` that is stretched there.
std::vector<std::size_t> stretched_from(const Shape& small, const Shape& large) {
  std::vector<std::size_t> result;
  result.reserve(std::size_t(large.count()));
  for (std::int64_t i = 0; i < large.count(); ++i) {
    const std::vector<std::int64_t> at = index_of(large, i);
    std::int64_t element = 0;
    for (int axis = 0; axis < small.rank(); ++axis) {
      const std::int64_t j = at[std::size_t(axis + large.rank() - small.rank())];
      element = element * small[axis] + (small[axis] == 1 ? 0 : j);
    }
    result.push_back(std::size_t(element));
  }
  return result;
}

std::string stretched_axes(const Shape& small, const Shape& large) {
  std::vector<std::int64_t> axes;
  for (int axis = 0; axis < large.rank(); ++axis) {
    const int own = axis - (large.rank() - small.rank());
    if (own < 0 || (small[own] == 1 && large[axis] != 1)) axes.push_back(axis);
  }
  return (axes.size() == 1 ? "axis " : "axes ") + listed(axes);
}

bool is_finite(const Values& values) {
  return std::all_of(values.begin(), values.end(), [](double x) { return std::isfinite(x); });
}

// Tests hypotheses about one input.
class Examination {
 public:
  Examination(const ComparedGradients& both, std::size_t k)
      : both_(both), k_(k), shape_(both.points[k].shape()), numeric_(both.numeric[k].to_vector()) {
    result_.name = both.names[k];
    result_.shape = shape_;
    result_.analytic = both.analytic[k];
    result_.numeric = both.numeric[k];
    if (both.analytic[k]) analytic_ = both.analytic[k].to_vector();
    analytic_shape_ = both.analytic[k] ? both.analytic[k].shape() : shape_;
    if (!both.analytic[k]) analytic_.assign(numeric_.size(), 0);
    same_shape_ = analytic_shape_ == shape_;
    scale_ = is_finite(numeric_) ? largest(numeric_) : 0;
    if (same_shape_) compare();
  }

  bool agrees() const { return both_.comparable(k_) && result_.wrong == 0; }

  WrongGradient run() {
    look();
    std::stable_sort(result_.findings.begin(), result_.findings.end(), [](const Finding& a, const Finding& b) {
      return a.cause < b.cause;  // all that are there fit to the accuracy of the differences
    });
    return std::move(result_);
  }

 private:
  void compare() {
    Values errors;
    errors.reserve(numeric_.size());
    for (std::size_t i = 0; i < numeric_.size(); ++i) {
      errors.push_back(both_.error(analytic_[i], numeric_[i]));
      is_wrong_.push_back(errors.back() > kGradientTolerance);
      result_.wrong += is_wrong_.back();
    }
    error_ = largest_difference(analytic_, numeric_);
    result_.error = Tensor::from(errors, shape_);
    std::vector<std::size_t> order(errors.size());
    std::iota(order.begin(), order.end(), std::size_t(0));
    std::stable_sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) { return errors[a] > errors[b]; });
    for (const std::size_t i : order) {
      if (!is_wrong_[i] || result_.worst.size() == 8) break;
      result_.worst.push_back({index_of(shape_, std::int64_t(i)), analytic_[i], numeric_[i], errors[i]});
    }
  }

  void find(Cause cause, double residual, std::string evidence) {
    result_.findings.push_back({cause, std::move(evidence), scale_ > 0 ? residual / scale_ : residual});
  }
  // True if a hypothesis that leaves this residual explains the error.
  bool explains(double residual) const {
    const double most = same_shape_ ? std::min(kFit * scale_, 0.01 * error_) : kFit * scale_;
    return scale_ > 0 && residual <= most;
  }
  bool test(Cause cause, const Values& explained, const std::string& evidence) {
    if (explained.size() != analytic_.size()) return false;
    const double residual = largest_difference(analytic_, explained);
    if (!explains(residual)) return false;
    find(cause, residual, evidence);
    return true;
  }

  void look() {
    if (!both_.analytic[k_]) return look_at_nothing();
    if (!is_finite(analytic_) || !is_finite(numeric_)) return look_at_what_is_not_finite();
    if (both_.analytic[k_].dtype() != DType::f64) {
      find(
          Cause::wrong_type, 0,
          text_of("The gradient is ", both_.analytic[k_].dtype(), ", the input f64. A gradient has its input's type."));
      return;
    }
    look_at_other_inputs(true);
    if (!same_shape_) return look_at_shape();
    if (largest(analytic_) == 0) return look_at_nothing();
    look_at_incoming();
    look_at_factor();
    if (result_.findings.empty()) look_at_other_inputs(false);
    if (numeric_.size() < 2) return;
    look_at_order();
    look_at_stretched_slices();
    look_at_parts();
    look_at_precision();
    look_at_rows();
    look_at_terms();
    look_at_sums();
  }

  void look_at_nothing() {
    const std::string what = both_.analytic[k_] ? "Every element of the analytic gradient is 0"
                                                : "There is no analytic gradient: an empty tensor, which counts as 0";
    find(Cause::no_flow, scale_,
         text_of(what, ", yet the numeric one reaches ", digits(scale_),
                 ". Was the input taken as a constant (no leaf, ",
                 "or detached)? Or does backward return nothing for it?"));
  }

  void look_at_what_is_not_finite() {
    const auto count = [](const Values& values) {
      return std::count_if(values.begin(), values.end(), [](double x) { return !std::isfinite(x); });
    };
    if (const auto bad = count(numeric_); bad > 0) {
      find(Cause::not_finite, 0,
           text_of(bad, " of ", numeric_.size(),
                   " numeric differences are not finite: the function itself gives NaN or ",
                   "infinity near this point."));
      return;
    }
    const auto first = std::find_if(analytic_.begin(), analytic_.end(), [](double x) { return !std::isfinite(x); });
    find(Cause::not_finite, 0,
         text_of(count(analytic_), " of ", analytic_.size(), " analytic elements are not finite, first at ",
                 position(first - analytic_.begin()), "; the numeric ones are. A division by 0, the logarithm of 0, ",
                 "0 * infinity, or memory that was never written?"));
  }

  std::string position(std::ptrdiff_t element) const {
    return "[" + listed(index_of(analytic_shape_, element), 6) + "]";
  }

  // dy must come in, and in proportion: what it does not reach is the same for dy and 2 dy.
  void look_at_incoming() {
    if (both_.doubled.size() <= k_ || !both_.doubled[k_] || both_.doubled[k_].shape() != shape_) return;
    const Values doubled = both_.doubled[k_].to_vector();
    if (!is_finite(doubled)) return;
    const double most = largest(analytic_);
    Values twice = analytic_, four_times = analytic_;
    for (double& x : twice) x *= 2;
    for (double& x : four_times) x *= 4;
    if (largest_difference(doubled, twice) <= kFit * most) return;
    if (largest_difference(doubled, analytic_) <= kFit * most) {
      find(Cause::ignores_incoming, 0,
           "With twice the incoming gradient dy the analytic gradient stays the same; it must double. Was the "
           "multiplication by dy forgotten?");
    } else if (largest_difference(doubled, four_times) <= kFit * most) {
      find(Cause::ignores_incoming, 0,
           "With twice the incoming gradient dy the analytic gradient becomes four times as large; it must double. "
           "Does dy come in twice?");
    } else {
      find(Cause::ignores_incoming, 0,
           "With twice the incoming gradient dy the analytic gradient does not double. Is something added that dy "
           "does not reach?");
    }
  }

  // a = r n by least squares. One element can show no pattern, so there only factors with a name count.
  void look_at_factor() {
    const double factor = ratio(analytic_, numeric_);
    Values explained = numeric_;
    for (double& x : explained) x *= factor;
    const double residual = largest_difference(analytic_, explained);
    if (!explains(residual) || residual > kFit * largest(analytic_)) return;
    const std::string meaning = meaning_of(factor);
    const auto nonzero = std::count_if(numeric_.begin(), numeric_.end(), [&](double x) { return x != 0; });
    if (nonzero < 2 && meaning.empty()) return;
    const std::string where =
        nonzero < 2 ? "the only element that is not 0" : text_of("all ", numeric_.size(), " elements");
    const std::string evidence = text_of("analytic = ", factor_text(factor), " x numeric in ", where, ".");
    if (std::abs(factor + 1) <= kFit) {
      find(Cause::sign, residual, evidence + " A minus forgotten, or one too many?");
    } else if (std::abs(factor - 1) <= 1e-5) {
      find(Cause::precision, residual, evidence + " Is a constant given with too few digits?");
    } else {
      find(Cause::factor, residual, evidence + meaning);
    }
  }

  static double ratio(const Values& a, const Values& n) {
    const double square = std::inner_product(n.begin(), n.end(), n.begin(), 0.0);
    return square > 0 ? std::inner_product(a.begin(), a.end(), n.begin(), 0.0) / square : 0;
  }

  // Readings of a factor: an extent of some tensor here, its root, or 2; empty if it has no name.
  std::string meaning_of(double factor) const {
    const double size = std::abs(factor);
    const auto is = [size](double x) { return std::abs(size - x) <= kFit * x; };
    if (is(1)) return factor < 0 ? " A sign." : "";
    std::string meaning;
    if (is(2)) meaning += " Is a flow added twice, or a 2 one too many?";
    if (is(0.5)) meaning += " A value used twice, with one of its two flows missing? Or a 2 forgotten, as of a square?";
    std::set<std::string> said;
    const auto say = [&](const std::string& number, const std::string& name, const std::string& reading) {
      if (said.insert(reading).second) meaning += " " + number + " is " + name + ": " + reading;
    };
    each_extent([&](double extent, const std::string& name) {
      const std::string number = digits(extent);
      if (is(extent)) say(number, name, "a division by it forgotten (a mean, taken as a sum)?");
      if (is(1 / extent))
        say("1/" + factor_text(size) + " = " + number, name, "divided by it (a sum, taken as a mean)?");
      if (is(std::sqrt(extent)))
        say("The square, " + number + ",", name, "a scale of 1/sqrt(" + number + ") forgotten?");
      if (is(1 / std::sqrt(extent)))
        say("This is 1/sqrt(" + number + "), and " + number, name, "scaled by it once too often?");
    });
    if (factor < 0 && !meaning.empty()) meaning += " And the sign is wrong.";
    return meaning;
  }

  // Extents that a factor may come from: this input's, then those of the other inputs and of the value.
  template <class See>
  void each_extent(See see) const {
    const auto of = [&](const Shape& shape, const std::string& name) {
      for (int axis = 0; axis < shape.rank(); ++axis)
        if (shape[axis] > 1) see(double(shape[axis]), text_of("the extent of axis ", axis, " of ", name, " ", shape));
      if (shape.rank() > 1 && shape.count() > 1)
        see(double(shape.count()), text_of("the number of elements of ", name, " ", shape));
    };
    of(shape_, both_.names[k_]);
    for (std::size_t j = 0; j < both_.points.size(); ++j)
      if (j != k_) of(both_.points[j].shape(), both_.names[j]);
    of(both_.value.shape(), "the output");
  }

  // Both ways, it is an exchange; one way it is said only if nothing else fits, as equal flows are common (a + b).
  void look_at_other_inputs(bool both_ways) {
    for (std::size_t j = 0; j < both_.points.size(); ++j) {
      if (j == k_ || both_.points[j].shape() != analytic_shape_) continue;
      const Values other = both_.numeric[j].to_vector();
      if (!is_finite(other) || largest(other) == 0) continue;
      const double residual = largest_difference(analytic_, other);
      if (residual > kFit * largest(other) || (same_shape_ && residual > 0.01 * error_)) continue;
      const bool returned = both_.analytic[j] && both_.analytic[j].shape() == shape_ &&
                            relative_error(both_.analytic[j], both_.numeric[k_]) <= kFit;
      if (returned != both_ways) continue;
      find(Cause::swapped, residual,
           text_of("The analytic gradient of ", both_.names[k_], " equals the numeric one of ", both_.names[j],
                   both_ways ? ", and the other way round. Are they returned in the wrong order?"
                             : ". Is it computed from the wrong input, or returned in the wrong place?"));
      return;
    }
  }

  // The gradient of an input has the input's shape.
  void look_at_shape() {
    const std::string shapes = text_of("The gradient is ", analytic_shape_, ", the input ", shape_);
    if (stretches(shape_, analytic_shape_) && shape_.count() < analytic_shape_.count()) {
      const std::vector<std::size_t> from = stretched_from(shape_, analytic_shape_);
      Values summed(numeric_.size(), 0);
      for (std::size_t i = 0; i < from.size(); ++i) summed[from[i]] += analytic_[i];
      const double residual = largest_difference(summed, numeric_);
      if (explains(residual))
        find(Cause::missing_sum, residual,
             text_of(shapes, "; summed over ", stretched_axes(shape_, analytic_shape_), " it equals the numeric one. ",
                     "An input that was stretched gets the sum of all that flows to its copies."));
    } else if (stretches(analytic_shape_, shape_)) {
      const std::vector<std::size_t> from = stretched_from(analytic_shape_, shape_);
      Values stretched;
      stretched.reserve(from.size());
      for (const std::size_t i : from) stretched.push_back(analytic_[i]);
      const double factor = ratio(stretched, numeric_);
      Values explained = numeric_;
      for (double& x : explained) x *= factor;
      const double residual = largest_difference(stretched, explained);
      if (analytic_.size() < numeric_.size() && factor != 0 && explains(residual))
        find(Cause::not_stretched, residual,
             text_of(shapes, "; stretched along ", stretched_axes(analytic_shape_, shape_), " it is ",
                     std::abs(factor - 1) <= kFit ? "the numeric one" : factor_text(factor) + " x the numeric one",
                     ". What a sum takes from each element flows back to each."));
    }
    if (analytic_.size() == numeric_.size()) {
      const bool transposed_shape = shape_.rank() == 2 && analytic_shape_ == Shape{shape_[1], shape_[0]};
      if (transposed_shape)
        test(Cause::transposed, permuted(numeric_, shape_, {1, 0}),
             shapes + "; transposed it equals the numeric one. Are the factors of a product in the wrong order?");
      test(Cause::reshaped, numeric_, shapes + "; the numbers, in their order, are right. Reshape it to the input's.");
    }
    if (result_.findings.empty()) look_at_other_inputs(false);
    if (result_.findings.empty())
      find(Cause::wrong_shape, 0,
           shapes + ". A gradient has the shape of its input; no sum, stretch or transposition makes them equal.");
  }

  void look_at_order() {
    look_at_axes();
    for (int axis = 0; axis < shape_.rank(); ++axis) {
      const std::int64_t extent = shape_[axis];
      if (extent < 2) continue;
      if (test(Cause::reversed, moved(numeric_, shape_, axis, [&](std::int64_t j) { return extent - 1 - j; }),
               text_of("Read backwards along axis ", axis, ", the analytic gradient equals the numeric one.")))
        continue;
      for (std::int64_t by = 1; by < extent; ++by) {
        const std::int64_t steps = by <= extent / 2 ? by : by - extent;
        test(Cause::rotated, moved(numeric_, shape_, axis, [&](std::int64_t j) { return (j - by + extent) % extent; }),
             text_of("Shifted by ", -steps, " along axis ", axis, ", in a circle, the analytic gradient equals the ",
                     "numeric one. The gradient of a shift goes the other way."));
      }
    }
    Values a = analytic_, n = numeric_;
    std::sort(a.begin(), a.end());
    std::sort(n.begin(), n.end());
    const double residual = largest_difference(a, n);
    if (result_.findings.empty() && explains(residual))
      find(Cause::permuted, residual,
           text_of("The ", a.size(), " analytic values, sorted, equal the numeric ones", slices_permuted(),
                   ". Do they go back to the places they came from (the inverse permutation, the same indices)?"));
  }

  void look_at_axes() {
    if (shape_.rank() < 2) return;
    std::vector<int> order(std::size_t(shape_.rank()));
    std::iota(order.begin(), order.end(), 0);
    std::vector<int> last_two = order;
    std::swap(last_two[last_two.size() - 1], last_two[last_two.size() - 2]);
    const std::string whole = shape_.rank() == 2 ? "" : "With the last two axes exchanged, ";
    const bool square = shape_[-1] == shape_[-2];
    test(Cause::transposed, permuted(numeric_, shape_, last_two),
         whole + (whole.empty() ? "Analytic" : "analytic") +
             (square ? "^T equals numeric in all elements."
                     : ", read in the transposed shape, equals the numeric one's transpose: reshaped where it should "
                       "be transposed?"));
    while (std::next_permutation(order.begin(), order.end())) {
      if (order == last_two) continue;
      std::vector<std::int64_t> axes(order.begin(), order.end());
      if (test(Cause::axes_permuted, permuted(numeric_, shape_, order),
               "The analytic values stand as the numeric ones do with the axes in the order " + listed(axes) +
                   ". The gradient of a permute is the inverse permute."))
        break;
    }
  }

  // ", row by row ..." if whole slices along an axis have changed places.
  std::string slices_permuted() const {
    for (int axis = 0; axis < shape_.rank(); ++axis) {
      const std::int64_t extent = shape_[axis];
      if (extent < 2 || extent == shape_.count()) continue;
      std::vector<std::int64_t> from(std::size_t(extent), -1);
      for (std::int64_t j = 0; j < extent; ++j)
        for (std::int64_t other = 0; other < extent && from[std::size_t(j)] < 0; ++other)
          if (slice_equals(axis, j, other)) from[std::size_t(j)] = other;
      if (std::find(from.begin(), from.end(), -1) == from.end())
        return text_of("; along axis ", axis, " whole slices changed places, the numeric slices ", listed(from, 12),
                       " in this order");
    }
    return "";
  }
  bool slice_equals(int axis, std::int64_t j, std::int64_t other) const {
    const std::int64_t extent = shape_[axis], after = shape_.product(axis + 1, shape_.rank());
    for (std::int64_t i = 0; i < shape_.count(); ++i) {
      if (i / after % extent != j) continue;
      if (std::abs(analytic_[std::size_t(i)] - numeric_[std::size_t(i + (other - j) * after)]) > kFit * scale_)
        return false;
    }
    return true;
  }

  // A stretched input gets the sum of the flows to its copies. Their flows are known where a tensor here sums up to it.
  void look_at_stretched_slices() {
    const auto equals_slice = [&](const Tensor& tensor, const std::string& name) {
      const Shape& large = tensor.shape();
      if (!stretches(shape_, large) || large.count() <= shape_.count() || shape_.count() == 0) return false;
      const Values flows = tensor.to_vector();
      const std::vector<std::size_t> from = stretched_from(shape_, large);
      Values summed(numeric_.size(), 0);
      std::vector<Values> copies(numeric_.size());
      for (std::size_t i = 0; i < from.size(); ++i) {
        summed[from[i]] += flows[i];
        copies[from[i]].push_back(flows[i]);
      }
      if (largest_difference(summed, numeric_) > kFit * scale_) return false;
      for (std::size_t copy = 0; copy < copies[0].size(); ++copy) {
        Values slice;
        slice.reserve(copies.size());
        for (const Values& all : copies) slice.push_back(all[copy]);
        const bool last = copy + 1 == copies[0].size();
        if (test(Cause::missing_sum, slice,
                 text_of("It equals slice ", copy,
                         last        ? " (the last)"
                         : copy == 0 ? " (the first)"
                                     : "",
                         " of ", name, " along ", stretched_axes(shape_, large), "; the numeric one is the sum of all ",
                         copies[0].size(), ". Is each slice written over the one before, instead of added?")))
          return true;
      }
      return false;
    };
    for (std::size_t j = 0; j < both_.points.size(); ++j)
      if (j != k_ && equals_slice(both_.numeric[j], "the gradient of " + both_.names[j])) return;
    equals_slice(both_.cotangent, "the incoming gradient");
  }

  // Whether the wrong elements are some slices along an axis, or a triangle, and what is there.
  void look_at_parts() {
    const std::int64_t count = shape_.count();
    if (result_.wrong == count || result_.wrong * 4 > count * 3) return;
    const std::string elements =
        text_of(result_.wrong, " of ", count, result_.wrong == 1 ? " elements is wrong, " : " elements are wrong, ");
    std::string where;
    for (int axis = 0; axis < shape_.rank() && where.empty(); ++axis) where = wrong_slices(axis);
    if (where.empty()) where = wrong_triangle();
    if (where.empty() && result_.wrong == 1) where = text_of("the one at [", listed(result_.worst.front().index), "]");
    if (where.empty()) {
      if (!result_.findings.empty()) return;
      result_.notes.push_back(text_of(elements.substr(0, elements.size() - 2), "; the others agree."));
      return;
    }
    find(Cause::part, 0, elements + where + "; the others agree. " + what_is_there());
  }

  std::string wrong_slices(int axis) const {
    const std::int64_t extent = shape_[axis], after = shape_.product(axis + 1, shape_.rank());
    std::vector<std::int64_t> wrong_in(std::size_t(extent), 0), with_value(std::size_t(extent), 0);
    for (std::int64_t i = 0; i < shape_.count(); ++i) {
      const auto j = std::size_t(i / after % extent);
      wrong_in[j] += is_wrong_[std::size_t(i)];
      with_value[j] += std::abs(numeric_[std::size_t(i)]) > kFit * scale_ || is_wrong_[std::size_t(i)];
    }
    std::vector<std::int64_t> indices;
    for (std::int64_t j = 0; j < extent; ++j) {
      if (wrong_in[std::size_t(j)] == 0) continue;
      if (wrong_in[std::size_t(j)] < with_value[std::size_t(j)]) return "";  // wrong in places alone
      indices.push_back(j);
    }
    const auto some = std::int64_t(indices.size());
    if (some == extent) return "";
    const bool at_end = indices.back() == extent - 1 && indices.front() == extent - some;
    const bool at_begin = indices.front() == 0 && indices.back() == some - 1;
    const std::string side = some == 1  ? (at_end     ? "the last, "
                                           : at_begin ? "the first, "
                                                      : "")
                             : at_end   ? text_of("the last ", some, ", ")
                             : at_begin ? text_of("the first ", some, ", ")
                                        : "";
    return text_of("all at ", some == 1 ? "index " : "indices ", listed(indices), " (", side, "of ", extent,
                   ") along axis ", axis);
  }

  std::string wrong_triangle() const {
    if (shape_.rank() < 2 || shape_[-1] < 2 || shape_[-2] < 2) return "";
    bool above = true, below = true, diagonal = true;  // all wrong elements lie there
    std::int64_t off = 0;
    for (std::int64_t i = 0; i < shape_.count(); ++i) {
      if (!is_wrong_[std::size_t(i)]) continue;
      const std::int64_t row = i / shape_[-1] % shape_[-2], column = i % shape_[-1];
      above = above && column > row;
      below = below && column < row;
      diagonal = diagonal && column == row;
      ++off;
    }
    if (off < 2) return "";
    if (diagonal) return "all on the diagonal";
    if (off < 3) return "";
    return above ? "all above the diagonal" : below ? "all below the diagonal" : "";
  }

  std::string what_is_there() const {
    Values a, n;
    for (std::size_t i = 0; i < numeric_.size(); ++i) {
      if (!is_wrong_[i]) continue;
      a.push_back(analytic_[i]);
      n.push_back(numeric_[i]);
    }
    if (largest(a) == 0) return "There the analytic gradient is 0: do they not take part?";
    if (largest(n) == 0) return "There the numeric gradient is 0: nothing should flow to them.";
    const double factor = ratio(a, n);
    Values explained = n;
    for (double& x : explained) x *= factor;
    if (n.size() > 1 && largest_difference(a, explained) <= kFit * largest(a))
      return text_of("There analytic = ", factor_text(factor), " x numeric.");
    return "Is an end of a loop, or a special case, off by one?";
  }

  void look_at_precision() {
    if (error_ > 1e-5 * scale_ || !result_.findings.empty()) return;
    find(Cause::precision, error_,
         text_of("All elements agree to ", digits(error_ / scale_, 1),
                 " of the largest: is something rounded to f32, or ", "a constant given with too few digits?"));
  }

  // a = r_j n for each index j along an axis. Half of the indices must hold two values that are not 0, as one ratio
  // always fits one value.
  void look_at_rows() {
    for (int axis = 0; axis < shape_.rank(); ++axis)
      if (shape_[axis] > 1 && shape_.count() / shape_[axis] > 1 && fit_rows(axis)) return;
  }
  bool fit_rows(int axis) {
    const std::int64_t extent = shape_[axis], after = shape_.product(axis + 1, shape_.rank());
    std::vector<Values> a{std::size_t(extent), Values()}, n = a;
    for (std::int64_t i = 0; i < shape_.count(); ++i) {
      a[std::size_t(i / after % extent)].push_back(analytic_[std::size_t(i)]);
      n[std::size_t(i / after % extent)].push_back(numeric_[std::size_t(i)]);
    }
    double residual = 0;
    std::string ratios;
    std::int64_t telling = 0;
    for (std::size_t j = 0; j < a.size(); ++j) {
      const double r = ratio(a[j], n[j]);
      for (std::size_t i = 0; i < a[j].size(); ++i) residual = std::max(residual, std::abs(a[j][i] - r * n[j][i]));
      telling += std::count_if(n[j].begin(), n[j].end(), [&](double x) { return std::abs(x) > kFit * scale_; }) > 1;
      if (j < 5) ratios += (j ? ", " : "") + digits(r);
    }
    if (telling < 2 || telling * 2 < extent || !explains(residual) || !result_.findings.empty()) return false;
    find(Cause::factor_along_axis, residual,
         text_of("analytic / numeric depends on the index along axis ", axis, " alone: ", ratios,
                 extent > 5 ? ", ..." : "",
                 ". A factor for each of them (a count, a weight, a norm) is missing or there twice."));
    return true;
  }

  // Differences that are one multiple of a known tensor in each row along the last axis: constants, the output, inputs.
  void look_at_terms() {
    Values difference = analytic_;
    for (std::size_t i = 0; i < difference.size(); ++i) difference[i] -= numeric_[i];
    const Values ones(difference.size(), 1);
    if (numeric_.size() >= 3 && is_spread(numeric_)) {
      const double c = ratio(difference, ones);
      Values explained = numeric_;
      for (double& x : explained) x += c;
      test(Cause::offset, explained,
           text_of("analytic = numeric + ", digits(c), " in all ", numeric_.size(),
                   " elements. Is something added that does not depend on the element?"));
    }
    if (!result_.findings.empty() || shape_.rank() == 0 || shape_[-1] < 3) return;
    test_term(difference, ones, "a constant for each row along the last axis",
              "A term that is the same in the whole row (such as the mean that is subtracted) is missing.");
    if (both_.value.shape() == shape_)
      test_term(difference, both_.value.to_vector(), "a multiple of the output in each row along the last axis",
                "The term that goes with the output, as y * sum(dy * y) of a softmax does, is missing.");
    for (std::size_t j = 0; j < both_.points.size(); ++j)
      if (both_.points[j].shape() == shape_)
        test_term(difference, both_.points[j].to_vector(),
                  "a multiple of " + both_.names[j] + " in each row along the last axis",
                  "The term that goes with " + both_.names[j] + " is missing.");
  }
  void test_term(const Values& difference, const Values& known, const std::string& what, const std::string& meaning) {
    const auto extent = std::size_t(shape_[-1]);
    Values explained = numeric_;
    for (std::size_t row = 0; row < difference.size(); row += extent) {
      const Values d(difference.begin() + std::ptrdiff_t(row), difference.begin() + std::ptrdiff_t(row + extent));
      const Values q(known.begin() + std::ptrdiff_t(row), known.begin() + std::ptrdiff_t(row + extent));
      const double c = ratio(d, q);
      for (std::size_t i = 0; i < extent; ++i) explained[row + i] += c * q[i];
    }
    test(Cause::missing_term, explained, "analytic - numeric is " + what + ". " + meaning);
  }
  bool is_spread(const Values& values) const {
    const auto [low, high] = std::minmax_element(values.begin(), values.end());
    return *high - *low > 1e-3 * scale_;
  }

  // A sum that the numeric gradient keeps at 0 and the analytic does not: a fact, though not yet a cause.
  void look_at_sums() {
    if (!result_.findings.empty() || shape_.rank() == 0) return;
    for (int axis = 0; axis < shape_.rank(); ++axis) {
      if (shape_[axis] < 2 || !sums_vanish(numeric_, axis) || sums_vanish(analytic_, axis)) continue;
      result_.notes.push_back(text_of("Along axis ", axis,
                                      " the numeric gradient always sums to 0 (as behind a softmax, a ",
                                      "norm or a difference to the mean); the analytic one does not."));
      return;
    }
  }
  bool sums_vanish(const Values& values, int axis) const {
    const std::int64_t extent = shape_[axis], after = shape_.product(axis + 1, shape_.rank());
    Values sums(std::size_t(shape_.count() / extent), 0);
    for (std::int64_t i = 0; i < shape_.count(); ++i)
      sums[std::size_t(i / (after * extent) * after + i % after)] += values[std::size_t(i)];
    return largest(sums) <= kFit * largest(values);
  }

  const ComparedGradients& both_;
  std::size_t k_;
  Shape shape_, analytic_shape_;
  Values numeric_, analytic_;
  std::vector<bool> is_wrong_;
  bool same_shape_ = true;
  double scale_ = 0;  // largest |numeric|
  double error_ = 0;  // largest |analytic - numeric|
  WrongGradient result_;
};

// A second run that gives something else.
std::optional<Finding> repeated(const ComparedGradients& both) {
  for (std::size_t k = 0; k < both.analytic.size(); ++k) {
    const Tensor &first = both.analytic[k], &second = both.again[k];
    if (equal_bits(first, second)) continue;
    std::string evidence = "A second run on the same numbers gives another gradient of " + both.names[k] + ".";
    bool grows = first && second && first.shape() == second.shape();
    if (grows) {
      Values twice = first.to_vector();
      for (double& x : twice) x *= 2;
      grows = largest(twice) > 0 && largest_difference(twice, second.to_vector()) <= kFit * largest(twice);
    }
    evidence += grows ? " It is twice the first: is the gradient of the run before not cleared?"
                      : " Does it depend on something that changes: a counter, fresh random numbers, unset memory?";
    return Finding{Cause::not_repeatable, evidence, 0};
  }
  return {};
}

}  // namespace

std::string_view name_of(Cause cause) { return kDescriptions.at(std::size_t(cause)).name; }
std::string_view title_of(Cause cause) { return kDescriptions.at(std::size_t(cause)).title; }

const Finding* Diagnosis::likely() const {
  if (!findings.empty()) return &findings.front();
  for (const WrongGradient& gradient : wrong)
    if (gradient.is_explained()) return &gradient.findings.front();
  return nullptr;
}

Diagnosis diagnose(const ComparedGradients& gradients) {
  Diagnosis diagnosis;
  if (!gradients.failure.empty()) {
    diagnosis.findings.push_back({Cause::failed, gradients.failure, 0});
    return diagnosis;
  }
  if (std::optional<Finding> finding = repeated(gradients)) diagnosis.findings.push_back(std::move(*finding));
  bool comparable = true;
  for (std::size_t k = 0; k < gradients.points.size(); ++k) {
    comparable = comparable && gradients.comparable(k);
    Examination examination(gradients, k);
    if (examination.agrees())
      diagnosis.right.push_back(gradients.names[k]);
    else
      diagnosis.wrong.push_back(examination.run());
  }
  const bool finite = std::all_of(gradients.numeric.begin(), gradients.numeric.end(),
                                  [](const Tensor& n) { return is_finite(n.to_vector()); });
  if (!gradients.smooth && comparable && finite)
    diagnosis.findings.push_back({Cause::kink,
                                  "Numeric differences with half the step give another derivative: the point lies on a "
                                  "kink or a tie, so these numbers say nothing about the analytic gradient.",
                                  0});
  return diagnosis;
}

}  // namespace sinkhorn
