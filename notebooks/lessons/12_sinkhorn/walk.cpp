#include <cmath>
#include <limits>

#include "autograd/gradcheck.h"
#include "autograd/ops.h"
#include "notebooks/kit/lesson.h"

namespace sinkhorn::lessons::lesson_12_sinkhorn {
namespace {

Tensor square(std::int64_t n, const std::vector<double>& numbers) { return Tensor::from(numbers, {n, n}); }

Tensor soft_permutation(const Tensor& log_scores, std::int64_t iterations) {
  return sinkhorn(log_scores, {}, iterations).value;
}

// Sums over an axis, as numbers with a blank between.
std::string sums(const Tensor& x, int over) {
  std::string result;
  for (const double s : sum(Var(x), over).value.to_vector()) result += fmt::format("{:.3f} ", s);
  return result;
}

// The largest distance of a row's sum from its aim: columns / rows.
double row_error(const Tensor& x) {
  const double aim = double(x.shape()[1]) / double(x.shape()[0]);
  double worst = 0;
  for (const double s : sum(Var(x), 1).value.to_vector()) worst = std::max(worst, std::abs(s - aim));
  return worst;
}

double largest_sum(const Tensor& x, int over) {
  double worst = 0;
  for (const double s : sum(Var(x), over).value.to_vector()) worst = std::max(worst, std::abs(s));
  return worst;
}

void permutations(Page& page) {
  page.step("Everybody gets a place");
  page.text(
      "With top-k each bucket picks for itself. Two may pick the same, and some bucket may be picked by nobody. To "
      "sort is something else: every bucket moves to one place, and every place gets one bucket. As a matrix, rows "
      "are places and columns are buckets:");
  Tensor permutation = Tensor::zeros({4, 4}, DType::f64);
  for (const std::int64_t at : {0 * 4 + 2, 1 * 4 + 0, 2 * 4 + 3, 3 * 4 + 1}) permutation.span<double>()[at] = 1;
  page.picture(drawing::heat_map(page.style(), permutation, {.row_label = "place, columns: bucket", .numbers = true}));
  page.text(
      "A permutation matrix: one 1 in each row and in each column. It is as hard as an argmax, and has no slope "
      "either. Its soft relative is called doubly stochastic: entries from 0 to 1, and every row and every column "
      "adds up to 1. Like this one, made by the library from random scores:");
  const Tensor soft = soft_permutation(normal(Rng(10), {4, 4}, 0, 2, DType::f64), 50);
  page.picture(drawing::heat_map(page.style(), soft,
                                 {.low = 0, .high = 1, .row_label = "place, columns: bucket", .numbers = true}));
  page.picture("  sums of the rows:     " + sums(soft, 1) + "\n  sums of the columns:  " + sums(soft, 0));
  page.text(
      "Read a row as a recipe: how much of each bucket goes to this place. Softmax makes rows that add up to 1. How "
      "do we get the columns, too?");
}

void turns(Page& page) {
  page.step("By turns");
  page.text(
      "Divide each row by its sum. Now the rows are right and the columns wrong. Divide each column by its sum. Now "
      "the columns are right, and the rows wrong again, but less than before. Go on. Richard Sinkhorn proved in 1964 "
      "that a matrix of positive entries always gets there: the steps come nearer and nearer to a doubly stochastic "
      "matrix.");
  Var x = square(3, {1, 2, 3, 4, 1, 1, 1, 1, 6});
  std::vector<std::vector<std::string>> rows{{"at first", sums(x.value, 1), sums(x.value, 0)}};
  for (int i = 1; i <= 3; ++i) {
    x = x / sum(x, 1, true);
    rows.push_back({fmt::format("rows, {}", i), sums(x.value, 1), sums(x.value, 0)});
    x = x / sum(x, 0, true);
    rows.push_back({fmt::format("columns, {}", i), sums(x.value, 1), sums(x.value, 0)});
  }
  page.values("the matrix", square(3, {1, 2, 3, 4, 1, 1, 1, 1, 6}));
  page.picture(drawing::table(page.style(), {"after", "sums of rows", "sums of columns"}, rows));
  page.values("after 3 iterations", x.value);
}

void logarithms(Page& page) {
  page.step("In logarithms");
  page.text(
      "A model has scores, which may be negative; positive numbers are exp(score). Scores are divided by a "
      "temperature before, so they may be large, and exp(score) overflows. You know the cure from the lesson on "
      "softmax: stay with the logarithms. Dividing by a sum becomes subtracting the logarithm of the sum, and that "
      "is log-sum-exp. The whole algorithm, said with ops of the library:");
  page.code("autograd/ops/sinkhorn.cpp", "Var composed_sinkhorn(");
  page.text("With scores of some hundreds nothing breaks:");
  const Tensor far = square(3, {700, -300, 690, 100, 110, 120, -800, -790, 640});
  page.values("scores", far);
  page.values("after 20 iterations", soft_permutation(far, 20));
  page.text("Taken as it stands, the exponential of the first score is {}. That of 710 would be {}: f64 ends at {}.",
            drawing::number(std::exp(700.0)), drawing::number(std::exp(710.0)),
            drawing::number(std::numeric_limits<double>::max()));
}

void convergence(Page& page) {
  page.step("How fast");
  page.text(
      "After each iteration the columns are exact, so the error is in the rows: the largest |sum - 1|. Here it is "
      "for a random 8 x 8 matrix, scores from N(0, 1), as its logarithm to base 10, over 20 iterations:");
  const Tensor x = normal(Rng(11), {8, 8}, 0, 1, DType::f64);
  std::vector<double> logarithm;
  for (std::int64_t i = 1; i <= 20; ++i) logarithm.push_back(std::log10(row_error(soft_permutation(x, i))));
  page.picture(drawing::curve(page.style(), logarithm, 9));
  page.text(
      "A straight line, until rounding ends it at 1e-16: each iteration divides the error by the same factor, here "
      "about {:.1f}. How large it is depends on how far the scores lie apart. Dividing them by a small temperature "
      "makes the result harder, nearer to a permutation, and the way there longer:",
      std::pow(10, logarithm[9] - logarithm[10]));
  std::vector<std::vector<std::string>> rows;
  for (const double temperature : {2.0, 1.0, 0.5, 0.25, 0.1}) {
    const Tensor scores = scale(Var(x), 1 / temperature).value, end = soft_permutation(scores, 50);
    rows.push_back({drawing::number(temperature), drawing::number(row_error(soft_permutation(scores, 5)), 2),
                    drawing::number(row_error(soft_permutation(scores, 20)), 2),
                    fmt::format("{:.2f}", mean(max(Var(end), 1)).value.item())});
  }
  page.picture(drawing::table(
      page.style(), {"temperature", "error after 5", "error after 20", "largest entry of a row, mean"}, rows));
  page.text(
      "The model makes 5 iterations. It ends with the columns: every bucket is handed out exactly once in all, while "
      "a place may get a little more or less than a whole one. That is good enough, and the gradient knows about "
      "it.\n\n"
      "A sum over a column mixes all rows, those of later places too. So a causal model, which must not look ahead, "
      "cannot use Sinkhorn normalisation, and always routes by top-k.");
}

void potentials(Page& page) {
  page.step("One number a row, one a column");
  page.text(
      "All that ever happens is that a number is subtracted from a whole row, or from a whole column. So after any "
      "number of iterations\n\n  Z_ij = score_ij - f_i - g_j\n\n"
      "Look: scores minus Z, after 5 iterations, for a 3 x 4 matrix. Any two rows differ by the same number in all "
      "columns.");
  const Tensor x = normal(Rng(12), {3, 4}, 0, 1, DType::f64);
  const Tensor taken = sub(x, log(soft_permutation(x, 5))).value;
  page.values("scores - Z = f_i + g_j", taken);
  page.values("row 1 minus row 0", sub(taken.slice(1, 2), taken.slice(0, 1)).value);
  page.text(
      "f and g are called potentials. The library's kernel computes nothing else, and keeps for backward I (N + M) "
      "numbers instead of 2 I matrices. (Rows of a 3 x 4 matrix cannot add up to 1 if the columns do: 4 columns make "
      "4 in all, so each row goes to 4 / 3.)");
  page.code("autograd/cpu/sinkhorn.cpp", "void row_potentials(const");
}

void backward(Page& page) {
  page.step("Back through every turn");
  page.text(
      "A step takes the log-sum-exp off each line, where a line is a row or a column: Z' = Z - log_sum_exp(Z). Then "
      "exp(Z') is the softmax of the line, the derivative of log-sum-exp is that softmax, and so\n\n"
      "  dZ_a = dZ'_a - exp(Z'_a) sum_b dZ'_b\n\n"
      "Backward does this 2 I times, last step first: columns, rows, columns, rows. May one not save the effort, and "
      "treat all but the last iteration as constants? This is the gradient of the first entry of a 4 x 4 matrix "
      "after 5 iterations, and what the last iteration alone would say:");
  const Tensor x = normal(Rng(13), {4, 4}, 0, 1.5, DType::f64);
  Tensor first = Tensor::zeros({4, 4}, DType::f64);
  first.span<double>()[0] = 1;
  auto gradient = [&](const Tensor& scores, std::int64_t iterations) {
    const Tape tape = Tape::record();
    const Var leaf = tape.leaf(scores);
    return tape.backward(sinkhorn(leaf, {}, iterations), first).of(leaf);
  };
  const Tensor whole = gradient(x, 5), last = gradient(log(soft_permutation(x, 4)).value, 1);
  page.picture(drawing::heat_map(page.style(), whole, {.row_label = "all 5 iterations", .numbers = true}));
  page.picture(drawing::heat_map(page.style(), last, {.row_label = "the last one alone", .numbers = true}));
  page.text(
      "Off by {:.0f} % of the largest entry. The true gradient knows that more in one place is less in another, all "
      "over the matrix. There is a pattern in it: its rows add up to 0, always, and its columns do nearly, the "
      "better the more iterations there are:",
      100 * relative_error(last, whole));
  std::vector<std::vector<std::string>> rows;
  for (const std::int64_t iterations : {1, 2, 5, 20, 50}) {
    const Tensor dx = gradient(x, iterations);
    rows.push_back({std::to_string(iterations),
                    largest_sum(dx, 1) < 1e-15 ? "0, to rounding" : drawing::number(largest_sum(dx, 1), 2),
                    largest_sum(dx, 0) < 1e-15 ? "0, to rounding" : drawing::number(largest_sum(dx, 0), 2)});
  }
  page.picture(drawing::table(page.style(), {"iterations", "largest |sum| of a row of dx", "of a column"}, rows));
  page.text(
      "A number added to a whole row is taken off by the first step, so it changes nothing at all. A number added to "
      "a column is forgotten step by step.");
}

}  // namespace

void walk(Page& page) {
  permutations(page);
  turns(page);
  logarithms(page);
  convergence(page);
  potentials(page);
  backward(page);

  page.step("Your turn");
  page.text(
      "Write normalise and normalise_backward. The file as it stands normalises the rows once, and overflows.\n\n"
      "The checks use square matrices and others, 1 to 20 iterations, and scores up to 900 in size. They compare "
      "with the library's op, and your gradient with differences of your own normalise.");
}

Quiz quiz(Rng rng) {
  auto integer = [&](std::uint32_t tag, std::int64_t low, std::int64_t high) {
    return low + std::int64_t(rng.split(tag).bits().word(0) % std::uint32_t(high - low + 1));
  };
  const auto a = double(integer(0, 1, 9)), b = double(integer(1, 1, 9)), c = double(integer(2, 1, 9)),
             d = double(integer(3, 1, 9));
  const Tensor x = square(2, {a, b, c, d});
  const std::int64_t rows = integer(4, 3, 9), columns = integer(5, 3, 9), iterations = integer(6, 3, 10),
                     many = 8 * integer(7, 2, 16), score = integer(8, -50, 50), width = integer(9, 2, 20);
  return {
      Question::about_number(
          fmt::format("A matrix has the rows ({}, {}) and ({}, {}). Each row is divided by its sum. What is the first "
                      "entry now?",
                      a, b, c, d),
          a / (a + b), "the entry over the sum of its row"),
      Question::about_number(
          fmt::format(
              "The same rows, ({}, {}) and ({}, {}): first the rows are divided by their sums, then the columns by "
              "theirs. What is the first entry now?",
              a, b, c, d),
          soft_permutation(log(Var(x)).value, 1).to_vector()[0],
          "one iteration: a/(a+b), over the sum of what became of the first column"),
      Question::about_number(
          fmt::format("A matrix has {} rows and {} columns. After many iterations, what does a row add up to?", rows,
                      columns),
          double(columns) / double(rows), "each column adds up to 1, so all entries to the number of columns"),
      Question::about_number(
          fmt::format("All {} scores of a row are {}. What is each of them, in log space, after the row is normalised?",
                      width, score),
          -std::log(double(width)), "the logarithm of an equal share"),
      Question::about_number(
          fmt::format("A {0} x {0} matrix, {1} iterations. How many numbers does the library keep for backward, beside "
                      "the scores?",
                      many, iterations),
          double(iterations * 2 * many), "f and g of each iteration: I (N + M)", 0),
      Question::with_choices("Which sums are exactly 1 after the last iteration?",
                             {"those of the columns", "those of the rows", "both", "neither"},
                             "each iteration does the rows first and the columns last"),
      Question::with_choices("What does a row of the gradient by the scores add up to?",
                             {"0", "1", "the sum of dy in this row", "it depends on the iterations"},
                             "a number added to a whole row is taken off by the first step: it changes nothing"),
  };
}

}  // namespace sinkhorn::lessons::lesson_12_sinkhorn
