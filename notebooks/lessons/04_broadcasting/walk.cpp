
#include "autograd/ops/elementwise.h"
#include "autograd/ops/movement.h"
#include "autograd/ops/reduce.h"
#include "notebooks/kit/lesson.h"

namespace sinkhorn::lessons::lesson_04_broadcasting {
namespace {

Tensor of(const std::vector<double>& numbers, const Shape& shape) { return Tensor::from(numbers, shape); }

// 0, 1, 2, ... in order.
Tensor counting(const Shape& shape) {
  Tensor x(shape, DType::f64);
  for (std::int64_t i = 0; i < x.count(); ++i) x.span<double>()[i] = double(i);
  return x;
}

std::string meeting(const Shape& a, const Shape& b) {
  try {
    return text_of(broadcast_shape("add", a, b));
  } catch (const Error&) {
    return "an error";
  }
}

double dot(const Tensor& a, const Tensor& b) { return sum(Var(a) * Var(b)).value.item(); }

// The gradient of the sum of dy * (x + b), by b.
Tensor gradient_of_bias(const Tensor& x, const Tensor& bias, const Tensor& dy) {
  const Tape tape = Tape::record();
  const Var b = tape.leaf(bias);
  return tape.backward(Var(x) + b, dy).of(b);
}

}  // namespace

void walk(Page& page) {
  page.step("Tensors: many numbers, one shape");
  page.text(
      "One node a number, as in lesson 2, is a slow way to train: a small step of training has billions of products. "
      "So a node holds a tensor, a block of numbers with a shape. Shape (2, 3) is a matrix of 2 rows and 3 columns; "
      "shape (2, 3, 4) is 2 such matrices of 3 rows and 4 columns; shape (5) is a list; shape () is a single number. "
      "The entries of a shape are its extents, and its places are called axes. The number of axes is the rank.\n\nIn "
      "memory there are no axes. The numbers lie in one line, and the last axis runs fastest. Here is where each "
      "element of a (3, 4) lies:");
  page.values("place in memory", counting({3, 4}));
  page.text(
      "Element (r, c) lies at 4 r + c. In general a coordinate is multiplied by the product of all extents to its "
      "right. That factor is the stride of its axis: here 4 for rows and 1 for columns.");

  page.step("A row added to every row");
  const Tensor x = counting({3, 4}), b = of({10, 20, 30, 40}, {4});
  page.text(
      "A layer computes something for every position of a text, one row for each, and adds the same bias to all "
      "rows. The shapes are (3, 4) and (4), and the library adds them without being told how:");
  page.values("x", x);
  page.values("b", b);
  page.values("x + b", (Var(x) + Var(b)).value);
  page.text(
      "b was stretched: it acts as if it stood there three times. No copy of it is made. This is called broadcasting.");

  page.step("The rule");
  page.text(
      "Write two shapes one above the other so that their last axes meet. In each axis, the extents are equal, or "
      "one of them is 1, or one shape has no such axis. The 1, or the nothing, is stretched to the other. Else it is "
      "an error. What the library says to some pairs:");
  std::vector<std::vector<std::string>> rows;
  const std::vector<std::pair<Shape, Shape>> pairs = {{{3, 4}, {4}},          {{3, 4}, {3, 1}},      {{3, 1}, {4}},
                                                      {{2, 3, 4}, {2, 1, 4}}, {{}, {2, 3}},          {{3, 4}, {3}},
                                                      {{2, 3, 4}, {2, 4}},    {{2, 3, 4}, {2, 4, 3}}};
  rows.reserve(pairs.size());
  for (const auto& [a, other] : pairs) rows.push_back({text_of(a), text_of(other), meeting(a, other)});
  page.picture(drawing::table(page.style(), {"a", "b", "a + b"}, rows));
  page.text(
      "(3, 4) and (3) do not fit, although one might want them to: the 3 would have to stand under the 4. To add one "
      "number to each row, give it the shape (3, 1). And in (3, 1) with (4), both are stretched. This is the table "
      "of all sums of one element of each:");
  page.values("(0, 1, 2) as a column + (0, 10, 20, 30)", (Var(counting({3, 1})) + Var(of({0, 10, 20, 30}, {4}))).value);

  page.step("Index arithmetic: a stride of 0");
  page.text(
      "How does a program read a tensor as if it were larger? Walk over the large shape, and step through the small "
      "tensor with strides, except that the stride of a stretched axis is 0: moving along it leads nowhere. For (2, "
      "3, 4) from the shapes that stand on the left:");
  std::vector<std::vector<std::string>> strides;
  const Shape to{2, 3, 4};
  for (const Shape& from : {Shape{2, 3, 4}, Shape{4}, Shape{3, 1}, Shape{2, 1, 4}, Shape{2, 1, 1}, Shape{}}) {
    // The places of its own elements, stretched, say how far each axis of the result steps.
    const Tensor places = stretch(counting(from), to);
    const auto step = [&places](std::int64_t i) {
      return drawing::number(places.span<double>()[i] - places.span<double>()[0]);
    };
    strides.push_back({text_of(from), step(12), step(4), step(1)});
  }
  page.picture(drawing::table(page.style(), {"shape", "stride of axis 0", "axis 1", "axis 2"}, strides));
  page.text("And the places that are read in (2, 1, 4), in the order of the result (2, 3, 4), a row of it a line:");
  page.picture(drawing::values(page.style(), stretch(counting({2, 1, 4}), to)));
  page.text("In the library, `own` is the axis in the small tensor, and steps stay 0 where it is missing or 1 long:");
  page.code("autograd/ops/strided.h", "StridedLoop<N> broadcast_loop(");

  page.step("Backward: copies add up");
  const Tensor dy = uniform(Rng(4), {3, 4}, -1, 1, DType::f64);
  page.text(
      "Each element of b was used in three rows. A number that is used several times gets what comes back from every "
      "use, added (lesson 1). So the gradient of b is the sum of dy over the rows:");
  page.values("dy", dy);
  page.values("db, from the library", gradient_of_bias(x, b, dy));
  page.text(
      "For a column (3, 1), stretched over the columns, it is the sum over columns. For a single number, the sum of "
      "all. The rule for every case: sum over each axis that was stretched.");
  page.values("the gradient of a (3, 1), likewise", gradient_of_bias(x, of({1, 2, 3}, {3, 1}), dy));

  page.step("Two directions of one map");
  page.text(
      "There is a test for this that needs no differences. Stretching is linear, so sending x forward and asking dy "
      "about it must give the same number as sending dy back and asking x:\n\n  stretch(x) . dy  =  x . "
      "sum_to(dy)\n\nwhere . is the sum of all products of elements. Two maps that do this for every x and dy are "
      "called adjoint, and backward of a linear map is always its adjoint. With the library's two functions:");
  std::vector<std::vector<std::string>> ties;
  std::uint32_t tag = 0;
  for (const Shape& from : {Shape{4}, Shape{3, 1}, Shape{2, 1, 4}, Shape{}}) {
    const Tensor small = uniform(Rng(5).split(tag++), from, -1, 1, DType::f64);
    const Tensor flow = uniform(Rng(6).split(tag++), to, -1, 1, DType::f64);
    ties.push_back({text_of(from), fmt::format("{:.12f}", dot(stretch(small, to), flow)),
                    fmt::format("{:.12f}", dot(small, sum_to(flow, from)))});
  }
  page.picture(drawing::table(page.style(), {"x, stretched to (2, 3, 4)", "stretch(x) . dy", "x . sum_to(dy)"}, ties));
  page.text("With sum_to, backward of a product is what school says, and then the way back for each factor:");
  page.code("autograd/ops/elementwise.cpp", "Tensors Mul::backward(");

  page.step("Your turn");
  page.text(
      "Write broadcast_shape, stretch and sum_to for up to four axes. There is one idea in it: a function that says, "
      "for element i of the large tensor, which element of the small one it is a copy of. Forward reads through it, "
      "backward adds through it.\n\nThe checks draw shapes at random, with extents of 1 and missing axes in every "
      "combination. They compare with the library, test that the two directions are adjoint, and put your functions "
      "to work as the gradient of a * b.");
}

Quiz quiz(Rng rng) {
  const std::int64_t a = whole(rng.split(0), 2, 5), b = whole(rng.split(1), 6, 9), c = whole(rng.split(2), 2, 9);
  const Shape left{a, 1, c}, right{b, 1}, both = broadcast_shape("quiz", left, right);
  const std::int64_t row = whole(rng.split(3), 1, a - 1), column = whole(rng.split(4), 0, b - 1);
  const std::int64_t positions = whole(rng.split(5), 20, 400);
  const Tensor ones = Tensor::full({positions, 2}, 1, DType::f64);
  return {
      Question::about_number(
          fmt::format("How many elements has the sum of a {} and a {}?", text_of(left), text_of(right)),
          double(both.count()), "it has shape " + text_of(both), 0),
      Question::about_number(
          fmt::format("Where in memory, counted from 0, lies element ({}, {}) of a tensor of shape ({}, {})?", row,
                      column, a, b),
          double(row * b + column), "row times the stride of rows, plus the column", 0),
      Question::about_number(
          fmt::format("A (1, {}) is stretched to ({}, {}). From which place in its memory is element ({}, {}) read?", b,
                      a, b, row, column),
          double(column), "the stride of the stretched axis is 0", 0),
      Question::about_number(fmt::format("A bias of shape (2) is added to each of {} rows, and dy is 1 everywhere. "
                                         "What is the gradient of its first element?",
                                         positions),
                             sum_to(ones, {2}).to_vector()[0], "one share from each row: a sum, not a mean", 0),
      Question::with_choices(fmt::format("Which of these can be added to a tensor of shape ({}, {})?", a, b),
                             {fmt::format("({}, 1)", a), fmt::format("({})", a), fmt::format("({}, {})", b, a),
                              fmt::format("({}, {}, 1)", a, b)},
                             "aligned at the last axis, extents are equal or one of them is 1"),
      Question::with_choices("y is x summed over its rows. What is dx?",
                             {"dy, stretched over the rows", "dy, summed over the rows",
                              "dy divided by the number of rows", "dy in the first row, 0 elsewhere"},
                             "sum and stretch are adjoint, so each is the other's way back"),
  };
}

}  // namespace sinkhorn::lessons::lesson_04_broadcasting
