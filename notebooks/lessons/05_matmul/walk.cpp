
#include "autograd/gradcheck.h"
#include "autograd/ops/elementwise.h"
#include "autograd/ops/matmul.h"
#include "autograd/ops/movement.h"
#include "autograd/ops/reduce.h"
#include "notebooks/kit/lesson.h"

namespace sinkhorn::lessons::lesson_05_matmul {
namespace {

Tensor of(const std::vector<double>& numbers, const Shape& shape) { return Tensor::from(numbers, shape); }
Tensor drawn(std::uint32_t tag, const Shape& shape) { return uniform(Rng(5).split(tag), shape, -1, 1, DType::f64); }

struct Products {
  Tensor y, da, db;
};
Products products(const Tensor& a, const Tensor& b, const Tensor& dy) {
  const Tape tape = Tape::record();
  const Var left = tape.leaf(a), right = tape.leaf(b), y = matmul(left, right);
  const Gradients gradients = tape.backward(y, dy);
  return {y.value, gradients.of(left), gradients.of(right)};
}

}  // namespace

void walk(Page& page) {
  const Tensor a = of({1, 2, 3, 4, 5, 6}, {2, 3}), b = of({1, 0, 0, 1, 2, -1}, {3, 2});
  const Tensor dy = of({1, 10, 100, 1000}, {2, 2});
  const auto [y, da, db] = products(a, b, dy);

  page.step("Many dot products at once");
  page.text(
      "A neuron multiplies its inputs by its weights and adds up: a dot product. A layer has many neurons, and looks "
      "at many positions of a text. With the inputs of a position in each row of a, and the weights of a neuron in "
      "each column of b, all dot products together are the matrix product y = a b:\n\n  y[r, c] = sum over p of a[r, "
      "p] * b[p, c]");
  page.values("a", a);
  page.values("b", b);
  page.values("y = a b", y);
  page.text(
      "Row 0 of a is (1, 2, 3), column 0 of b is (1, 0, 2): 1*1 + 2*0 + 3*2 = {}. The shapes are (m, k) and (k, n), "
      "and the result is (m, n). k, the inner extent, must be the same in both, and it is gone afterwards.",
      y.to_vector()[0]);

  page.step("Who used a[r, p]?");
  page.text(
      "Backward always asks: who used this number, and with what? The number a[0, 2] = 3 was multiplied by row 2 of "
      "b, (2, -1). The products went into row 0 of y. So if these two elements of y count (1, 10), then\n\n  da[0, "
      "2] = 1 * 2 + 10 * (-1) = {}\n\nLet dy have numbers that can be told apart:",
      da.to_vector()[2]);
  page.values("dy", dy);
  page.values("da, from the library", da);
  page.text(
      "For all of a: da[r, p] is the sum over c of dy[r, c] * b[p, c], the dot product of row r of dy and row p of "
      "b. Row by row instead of row by column: that is a matrix product with b transposed (rows and columns "
      "swapped).\n\n  da = dy b^T");

  page.step("And who used b[p, c]?");
  page.text(
      "Column p of a, and it went into column c of y. So db[p, c] is the sum over r of a[r, p] * dy[r, c]:\n\n  db = "
      "a^T dy");
  page.values("db, from the library", db);
  page.text("db[0, 0] = 1 * 1 + 4 * 100 = {}. Should you ever forget the two rules, the shapes remember them:",
            db.to_vector()[0]);
  page.picture(drawing::table(page.style(), {"product", "shapes", "result"},
                              {{"y = a b", "(m, k) (k, n)", "(m, n)"},
                               {"da = dy b^T", "(m, n) (n, k)", "(m, k), as a"},
                               {"db = a^T dy", "(k, m) (m, n)", "(k, n), as b"}}));
  page.text("There is no other way to multiply dy by b and get the shape of a, if m, k and n differ.");

  page.step("Transposed without moving anything");
  page.text(
      "Nothing is transposed in memory for this. A product reads b[p, c] at place n p + c either way; it only walks "
      "in another order. So the library's matmul takes two flags, transpose_a and transpose_b, and backward sets "
      "them. These are its two products, where forward transposed nothing. In each, the first four numbers are the "
      "batch and the extents, then come the flags, then how far apart the matrices of a batch lie:");
  page.code("autograd/ops/matmul.cpp", "multiply({p.batch, p.m, p.k, p.n, false, !transpose_b");
  page.code("autograd/ops/matmul.cpp", "multiply({p.batch, p.k, p.n, p.m, !transpose_a, false");
  page.text(
      "Two more are for products that were transposed in forward already. In attention the scores are such a "
      "product: queries times transposed keys.");

  page.step("A batch, and a matrix for all");
  page.text(
      "A batch is many products side by side: (B, m, k) times (B, k, n) is (B, m, n). They have nothing to do with "
      "one another, and neither have their gradients.\n\nBut a layer's weights are one matrix for all sequences of "
      "the batch. It is used B times, so its gradient is the sum of B products. Here are three of them, and what the "
      "library makes of it:");
  const Tensor batch = drawn(0, {3, 2, 3}), shared = drawn(1, {3, 2}), flow = drawn(2, {3, 2, 2});
  Tensors parts;
  for (std::int64_t i = 0; i < 3; ++i)
    parts.push_back(products(batch.slice(i, i + 1).reshape({2, 3}), shared, flow.slice(i, i + 1).reshape({2, 2})).db);
  std::vector<std::vector<std::string>> rows;
  const auto row = [](const std::string& name, const Tensor& t) {
    std::vector<std::string> cells{name};
    for (const double x : t.to_vector()) cells.push_back(fmt::format("{:.4f}", x));
    return cells;
  };
  const Tensor together = products(batch, shared, flow).db;
  for (std::size_t i = 0; i < 3; ++i) rows.push_back(row(fmt::format("a_{}^T dy_{}", i, i), parts[i]));
  rows.push_back(row("their sum", (Var(parts[0]) + Var(parts[1]) + Var(parts[2])).value));
  rows.push_back(row("db of the library", together));
  page.picture(drawing::table(page.style(), {"", "[0, 0]", "[0, 1]", "[1, 0]", "[1, 1]", "[2, 0]", "[2, 1]"}, rows));
  page.text(
      "There is a trick in it. Lay the rows of all sequences below one another: (B, m, k) becomes (B m, k) without "
      "moving a number, since memory is one line (lesson 4). Then one tall product does it all, and its db sums over "
      "all rows by itself.");

  page.step("What it costs");
  const std::int64_t tokens = 2048, in = 128, out = 512;
  page.text(
      "A product of (m, k) and (k, n) is m n dot products of length k: m k n multiplications, and as many additions. "
      "Both backward products have the same three extents, in another order. So they cost the same again, twice. For "
      "a layer from {} to {} numbers, and a batch of {} positions, in million operations:",
      in, out, tokens);
  const double forward = 2e-6 * double(tokens) * double(in) * double(out);
  page.picture(drawing::bars(page.style(),
                             {{"forward, y = a b", forward}, {"backward, da", forward}, {"backward, db", forward}}));
  page.text(
      "This layer has {} weights. Forward needs 2 operations a weight and position, training needs 6. The rest of a "
      "layer, tanh and the like, costs as much as its number of outputs: {:.1f} million here, hardly anything.",
      in * out, 1e-6 * double(tokens * out));

  page.step("The same with differences");
  Tensor x = drawn(3, {2, 3, 4}), w = drawn(4, {4, 5});
  const GradientReport report = check_gradients({{x, w},
                                                 {"a", "b"},
                                                 [=] { return matmul(Var(x), Var(w)).value; },
                                                 [=](const Tensor& cotangent) {
                                                   const Products p = products(x, w, cotangent);
                                                   return Tensors{p.da, p.db};
                                                 }},
                                                Rng(1));
  page.text(
      "The library's gradient checker (lesson 3) on a {} and a shared {}: its worst relative error over all {} "
      "elements is {:.0e}. y is linear in each of a and b, so differences have no error of their own, and what is "
      "left is rounding.",
      text_of(x.shape()), text_of(w.shape()), x.count() + w.count(), report.worst);

  page.step("Your turn");
  page.text(
      "Write matmul and matmul_backward for a (B, m, k), and b (B, k, n) or (k, n). Plain loops are right; nobody "
      "asks for speed (lesson 22 does). The checks use extents that all differ, batches of 1 to 4, a shared b, and a "
      "b with one column. They compare with the library and with differences.");
}

Quiz quiz(Rng rng) {
  const std::int64_t batch = whole(rng.split(0), 2, 6), m = whole(rng.split(1), 2, 4), k = whole(rng.split(2), 5, 7),
                     n = whole(rng.split(3), 8, 10);
  const Tensor a = Tensor::full({batch, m, k}, 1, DType::f64), b = Tensor::full({k, n}, 1, DType::f64);
  const auto shared = products(a, b, Tensor::full({batch, m, n}, 1, DType::f64));
  const double p = double(whole(rng.split(4), 1, 4)), q = double(whole(rng.split(5), -4, -1)),
               r = double(whole(rng.split(6), 2, 5)), s = double(whole(rng.split(7), 6, 9));
  const Products small = products(of({1, 2}, {1, 2}), of({p, q, r, s}, {2, 2}), of({10, 1}, {1, 2}));
  return {
      Question::about_number(fmt::format("b is ({} {}; {} {}), two rows of two, and dy = (10, 1), one row. y = a b. "
                                         "What is the first element of da?",
                                         p, q, r, s),
                             small.da.to_vector()[0], "dy times row 0 of b", 0),
      Question::about_number(
          fmt::format(
              "a ({}, {}, {}) times one b ({}, {}) for all. a and dy are 1 everywhere. What is each element of db?",
              batch, m, k, k, n),
          shared.db.to_vector()[0], "one share from each row of each product: batch times m", 0),
      Question::about_number(
          fmt::format("The same a ({}, {}, {}) and b ({}, {}), all of b being 1, and dy 1. What is each element of da?",
                      batch, m, k, k, n),
          shared.da.to_vector()[0], "a sum over the n columns of b", 0),
      Question::about_number(
          fmt::format("How many multiplications do forward and backward of ({}, {}) times ({}, {}) need together?", m,
                      k, k, n),
          double(3 * m * k * n), "m k n each for y, da and db", 0),
      Question::with_choices(fmt::format("a is ({}, {}), b is ({}, {}). Which product is db?", m, k, k, n),
                             {"a^T dy", "dy a^T", "dy^T a", "a dy"},
                             "(k, m) times (m, n) is (k, n), the shape of b, and no other product has it"),
      Question::with_choices("What does the tape keep of y = a b, if both are differentiated?",
                             {"a and b", "y", "a, b and y", "nothing"}, "da needs b, db needs a, nobody needs y"),
  };
}

}  // namespace sinkhorn::lessons::lesson_05_matmul
