#include <cmath>

#include "autograd/ops.h"
#include "notebooks/kit/lesson.h"

namespace sinkhorn::lessons::lesson_06_softmax {
namespace {

Tensor row(const std::vector<double>& scores) { return Tensor::from(scores, {1, std::int64_t(scores.size())}); }

std::vector<std::pair<std::string, double>> labelled(const Tensor& shares) {
  std::vector<std::pair<std::string, double>> result;
  for (const double share : shares.to_vector()) result.emplace_back("score " + std::to_string(result.size()), share);
  return result;
}

}  // namespace

void walk(Page& page) {
  page.step("Scores become shares");
  const Tensor x = row({1, 2, 3, 0});
  const Tensor y = softmax(Var(x)).value;
  page.text(
      "An attention head has a score for every place it could look at. What it needs are shares: positive numbers "
      "that add up to 1. Softmax makes them:\n\n  y_i = exp(x_i) / sum_j exp(x_j)");
  page.values("scores x", x);
  page.picture(drawing::bars(page.style(), labelled(y)));
  page.text("They add up to {}. One more point of score is a factor of e = {:.3f} in the share.",
            sum(Var(y)).value.item(), y.to_vector()[1] / y.to_vector()[0]);

  page.step("Exponentials overflow");
  page.text(
      "An f32 holds numbers up to 3.4e38. exp(88) still fits, exp(89) does not. Scores of that size do occur: early "
      "in training, or when a mask writes a large negative number. Written down as the formula stands, softmax "
      "divides infinity by infinity:");
  page.picture(drawing::table(page.style(), {"x", "exp(x) in f32", "exp(x) / (exp(x) + exp(x))"},
                              {{"80", drawing::number(std::exp(80.0f)), "0.5"},
                               {"88", drawing::number(std::exp(88.0f)), "0.5"},
                               {"89", drawing::number(std::exp(89.0f)),
                                drawing::number(std::exp(89.0f) / (std::exp(89.0f) + std::exp(89.0f)))}}));
  page.text("What the library says to a row of 1000, 1001, 1002:");
  page.values("softmax", softmax(Var(row({1000, 1001, 1002}))).value);

  page.step("Shifting a row changes nothing");
  page.text(
      "Multiply every exponential of a row by the same exp(-c): the factor stands above and below the line, and "
      "cancels. So a row may be shifted by any c before the exponentials. With c = the largest score, the largest "
      "exponential is exp(0) = 1, and all others lie between 0 and 1. Nothing overflows; what underflows to 0 was a "
      "share too small to matter.");
  page.values("softmax(0, 1, 2)", softmax(Var(row({0, 1, 2}))).value);
  page.text("The same digits as for 1000, 1001, 1002 above. The log of the sum comes back the same way:");
  page.picture("  log sum_j exp(x_j) = m + log sum_j exp(x_j - m),   m = max_j x_j\n");
  page.values("log_sum_exp(1000, 1001, 1002)", log_sum_exp(Var(row({1000, 1001, 1002}))).value, 8);

  page.step("The gradient");
  page.text(
      "Each share depends on every score of its row: a score that rises takes from all the others. The derivatives "
      "of all shares by all scores are a matrix, here for the four scores above (rows: shares, columns: scores):");
  const Tensor scores = row({1, 2, 3, 0});
  Tensor jacobian({4, 4}, DType::f64);
  for (std::int64_t i = 0; i < 4; ++i) {
    Tensor pick = Tensor::zeros({1, 4}, DType::f64);
    pick.span<double>()[i] = 1;
    const Tape tape = Tape::record();
    const Var leaf = tape.leaf(scores);
    const Tensor dx = tape.backward(softmax(leaf), pick).of(leaf);
    for (std::int64_t j = 0; j < 4; ++j) jacobian.span<double>()[i * 4 + j] = dx.span<double>()[j];
  }
  page.picture(drawing::heat_map(page.style(), jacobian, {.row_label = "share", .numbers = true}));
  page.text(
      "On the diagonal y_i (1 - y_i), elsewhere -y_i y_j. Backward never builds this matrix: multiplied by an "
      "incoming dy it is one dot product a row.");
  page.code("autograd/cpu/softmax.cpp", "void Softmax<T>::backward");

  page.step("Your turn");
  page.text(
      "Write softmax, its gradient and log-sum-exp for rows of f64. The file as it stands compiles and is wrong in "
      "all three. The checks use rows of scores near -2000, -1000, 0 and 1000, and compare your gradient with "
      "differences of your own softmax.");
}

Quiz quiz(Rng rng) {
  const Tensor x = uniform(rng.split(0), {1, 3}, -2, 2, DType::f64);
  const std::vector<double> scores = x.to_vector(), shares = softmax(Var(x)).value.to_vector();
  const double shift = std::round(uniform(rng.split(1), {1}, 100, 900).item());
  const Tensor equal = Tensor::full({1, 2 + std::int64_t(rng.split(2).bits().word(0) % 30)}, shift, DType::f64);
  return {
      Question::about_number(
          fmt::format("The scores of a row are {:.2f}, {:.2f} and {:.2f}. What is the share of the first?", scores[0],
                      scores[1], scores[2]),
          softmax(
              Var(Tensor::from(std::vector<double>{std::round(scores[0] * 100) / 100, std::round(scores[1] * 100) / 100,
                                                   std::round(scores[2] * 100) / 100},
                               {1, 3})))
              .value.to_vector()[0],
          "exp of the first score over the sum of the three exponentials"),
      Question::about_number(
          fmt::format("A row has {} scores, all equal to {}. What is its log-sum-exp?", equal.count(), shift),
          log_sum_exp(Var(equal)).value.item(), "the shift comes back, plus the log of the number of scores", 1e-4),
      Question::about_number(fmt::format("A share is {:.3f}. What is its derivative by its own score?", shares[1]),
                             std::round(shares[1] * 1000) / 1000 * (1 - std::round(shares[1] * 1000) / 1000),
                             "y (1 - y)"),
      Question::with_choices("What do the entries of dx add up to, in every row, whatever dy is?",
                             {"0", "1", "the sum of dy", "it depends on x"},
                             "shifting the row changes nothing, so there is no gradient along (1, 1, ..., 1)"),
  };
}

}  // namespace sinkhorn::lessons::lesson_06_softmax
