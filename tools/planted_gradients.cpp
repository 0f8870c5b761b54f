#include "tools/planted_gradients.h"

#include <fmt/format.h>

#include <algorithm>
#include <limits>

#include "autograd/ops.h"
#include "models/fields.h"

namespace sinkhorn {
namespace {

using Function = std::function<Var(const Tensors& x)>;
using Gradient = std::function<Tensors(const Tensors& x, const Tensor& dy)>;

PlantedGradient plant(std::string name, std::string purpose, const std::vector<std::pair<std::string, Shape>>& inputs,
                      const Function& f, const Gradient& gradient) {
  return {std::move(name), std::move(purpose), [=](Draw& draw) {
            GradientProblem problem;
            for (const auto& [input, shape] : inputs) {
              problem.names.push_back(input);
              problem.points.push_back(draw.uniform(shape, 0.5, 2));
            }
            problem.value = [f, x = problem.points] { return f(x).value; };
            problem.gradients = [gradient, x = problem.points](const Tensor& dy) { return gradient(x, dy); };
            return problem;
          }};
}

Tensor product(const Tensor& a, const Tensor& b, double factor = 1) { return scale(mul(a, b), factor).value; }
Tensor times(const Tensor& a, const Tensor& b, bool transpose_a, bool transpose_b) {
  return matmul(a, b, transpose_a, transpose_b).value;
}
Tensor stretched(const Tensor& x, Shape shape) { return add(Tensor::zeros(shape, DType::f64), x).value; }
// x y: the value of both plants of a product.
Var product_of_two(const Tensors& x) { return mul(x[0], x[1]); }
Var matrix_product(const Tensors& x) { return matmul(x[0], x[1]); }
Var squared(const Tensors& x) { return square(x[0]); }
Var with_bias(const Tensors& x) { return add(x[0], x[1]); }

std::vector<PlantedGradient> make_plants() {
  return {
      plant("none", "y = x^2 with its right gradient", {{"x", {3, 4}}}, squared,
            [](const Tensors& x, const Tensor& dy) { return Tensors{product(x[0], dy, 2)}; }),
      plant(
          "factor", "the mean of each row, without the 1/N in its gradient", {{"x", {3, 4}}},
          [](const Tensors& x) { return mean(x[0], 1, true); },
          [](const Tensors& x, const Tensor& dy) { return Tensors{stretched(dy, x[0].shape())}; }),
      plant(
          "sign", "a - b, with + in b's gradient", {{"a", {2, 3}}, {"b", {2, 3}}},
          [](const Tensors& x) { return sub(x[0], x[1]); },
          [](const Tensors&, const Tensor& dy) {
            return Tensors{dy, dy};
          }),
      plant("transposed", "A B, where B's gradient is dy^T A and not A^T dy", {{"A", {3, 3}}, {"B", {3, 3}}},
            matrix_product,
            [](const Tensors& x, const Tensor& dy) {
              return Tensors{times(dy, x[1], false, true), times(dy, x[0], true, false)};
            }),
      plant("missing-sum", "a bias whose gradient is not summed over the batch", {{"x", {4, 3}}, {"bias", {3}}},
            with_bias,
            [](const Tensors&, const Tensor& dy) {
              return Tensors{dy, dy};
            }),
      plant("last-slice", "a bias whose gradient is that of the last row alone", {{"x", {4, 3}}, {"bias", {3}}},
            with_bias,
            [](const Tensors&, const Tensor& dy) {
              return Tensors{dy, dy.slice(3, 4).reshape({3})};
            }),
      plant(
          "rotated", "a shift whose gradient shifts the same way", {{"x", {7}}},
          [](const Tensors& x) { return rotate(x[0], 0, 2); },
          [](const Tensors&, const Tensor& dy) { return Tensors{rotate(dy, 0, 2).value}; }),
      plant(
          "reversed", "x with its gradient back to front", {{"x", {2, 5}}},
          [](const Tensors& x) { return scale(x[0], 3); },
          [](const Tensors&, const Tensor& dy) {
            Tensor dx = Tensor(dy.shape(), DType::f64);
            for (int i = 0; i < 10; ++i) dx.data<double>()[i] = 3 * dy.data<double>()[i / 5 * 5 + 4 - i % 5];
            return Tensors{dx};
          }),
      plant(
          "half", "x * x, with one of x's two flows", {{"x", {2, 3}}}, [](const Tensors& x) { return mul(x[0], x[0]); },
          [](const Tensors& x, const Tensor& dy) { return Tensors{product(x[0], dy)}; }),
      plant("swapped", "a * b, with the two gradients in the wrong order", {{"a", {2, 3}}, {"b", {2, 3}}},
            product_of_two,
            [](const Tensors& x, const Tensor& dy) {
              return Tensors{product(x[0], dy), product(x[1], dy)};
            }),
      plant(
          "missing-term", "a softmax whose gradient is y * dy alone", {{"x", {3, 4}}},
          [](const Tensors& x) { return softmax(x[0]); },
          [](const Tensors& x, const Tensor& dy) { return Tensors{product(softmax(x[0]).value, dy)}; }),
      plant("incoming", "x^2, with 2x for its gradient: dy does not come in", {{"x", {3, 4}}}, squared,
            [](const Tensors& x, const Tensor&) { return Tensors{scale(x[0], 2).value}; }),
      plant("no-flow", "a * b, with b taken for a constant", {{"a", {2, 3}}, {"b", {2, 3}}}, product_of_two,
            [](const Tensors& x, const Tensor& dy) {
              return Tensors{product(x[1], dy), Tensor()};
            }),
      plant("last-element", "x^2, with a loop that stops before the last of each row", {{"x", {3, 4}}}, squared,
            [](const Tensors& x, const Tensor& dy) {
              const Tensor dx = product(x[0], dy, 2).clone();
              for (int row = 0; row < 3; ++row) dx.data<double>()[row * 4 + 3] = 0;
              return Tensors{dx};
            }),
      plant("offset", "x^2, with a constant added to its gradient", {{"x", {3, 4}}}, squared,
            [](const Tensors& x, const Tensor& dy) {
              return Tensors{add(product(x[0], dy, 2), scale(sum(dy), 0.25)).value};
            }),
      plant("nan", "x^2, with 0/0 in one element of its gradient", {{"x", {3, 4}}}, squared,
            [](const Tensors& x, const Tensor& dy) {
              const Tensor dx = product(x[0], dy, 2).clone();
              dx.data<double>()[6] = std::numeric_limits<double>::quiet_NaN();
              return Tensors{dx};
            }),
      plant(
          "shape", "a sum over rows, its gradient not stretched back", {{"x", {3, 4}}},
          [](const Tensors& x) { return sum(x[0], 0, true); },
          [](const Tensors&, const Tensor& dy) { return Tensors{dy}; }),
      plant("throws", "a gradient function that throws", {{"A", {3, 4}}, {"B", {4, 2}}}, matrix_product,
            [](const Tensors& x, const Tensor& dy) {
              return Tensors{times(dy, x[1], false, false), times(x[0], dy, true, false)};
            }),
      plant("random", "random numbers: nothing fits, and the microscope says so", {{"x", {3, 4}}}, squared,
            [](const Tensors& x, const Tensor& dy) {
              return Tensors{mul(uniform(Rng(1), x[0].shape(), -1, 1, DType::f64), sum(dy)).value};
            }),
  };
}

}  // namespace

const std::vector<PlantedGradient>& planted_gradients() {
  static const std::vector<PlantedGradient> plants = make_plants();
  return plants;
}

const PlantedGradient& find_planted_gradient(const std::string& name) {
  std::vector<std::string> names;
  names.reserve(planted_gradients().size());
  for (const PlantedGradient& planted : planted_gradients()) {
    if (planted.name == name) return planted;
    names.push_back(planted.name);
  }
  const std::string near = nearest(name, names);
  fail<UsageError>("gradcheck: no planted gradient ", name, near.empty() ? "" : "; did you mean " + near + "?",
                   "  (there are ", fmt::format("{}", fmt::join(names, ", ")), ")");
}

}  // namespace sinkhorn
