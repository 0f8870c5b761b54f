#include <fmt/format.h>

#include <memory>

#include "autograd/ops.h"
#include "autograd/pool.h"
#include "notebooks/kit/checks.h"
#include "notebooks/lessons/16_reversible/exercise.h"

namespace sinkhorn::lesson {
namespace {

// A chain of `depth` blocks on tensors (rows, width), with the runs of its branches counted. Every third block shares
// its weights. f(x) = drop(tanh(x W)), g(x) = sigmoid(x W) x: neither can be inverted by itself.
struct Chain {
  Chain(std::size_t depth, std::int64_t width, const Rng& rng) {
    for (std::uint32_t i = 0; i < 6; ++i)
      weights.push_back(
          std::make_unique<Parameter>(Parameter{uniform(rng.split(i), {width, width}, -0.7, 0.7, DType::f64)}));
    for (std::size_t i = 0; i < depth; ++i) {
      const Parameter *in_f = weights[2 * (i % 3)].get(), *in_g = weights[2 * (i % 3) + 1].get();
      const auto run_f = [this, in_f, noise = rng.split(std::uint32_t(100 + i))](const Tape& tape, const Var& x) {
        count(tape);
        return dropout(tanh(matmul(x, leaf(tape, *in_f))), 0.2, noise);
      };
      const auto run_g = [this, in_g](const Tape& tape, const Var& x) {
        count(tape);
        return mul(sigmoid(matmul(x, leaf(tape, *in_g))), x);
      };
      blocks.push_back({{run_f, in_f}, {run_g, in_g}});
    }
  }
  static Var leaf(const Tape& tape, const Parameter& weight) { return tape ? tape.leaf(weight) : Var(weight.value); }
  void count(const Tape& tape) { ++(tape ? recorded : unrecorded); }

  std::vector<std::unique_ptr<Parameter>> weights;
  Blocks blocks;
  int recorded = 0, unrecorded = 0;
};

Pair draw(const Rng& rng, Shape shape) {
  return {uniform(rng.split(0), shape, -1, 1, DType::f64), uniform(rng.split(1), shape, -1, 1, DType::f64)};
}

// The same equations on one plain tape.
struct Reference {
  Reference(const Chain& chain, const Pair& x, const Pair& dy) {
    const Tape tape = Tape::record();
    const Var x1 = tape.leaf(x.first), x2 = tape.leaf(x.second);
    Var y1 = x1, y2 = x2;
    for (const Block& block : chain.blocks) {
      y1 = add(y1, block.f.run(tape, y2));
      y2 = add(y2, block.g.run(tape, y1));
    }
    y = {y1.value, y2.value};
    const Gradients gradients = tape.backward(sum(add(mul(y1, dy.first), mul(y2, dy.second))));
    dx = {gradients.of(x1), gradients.of(x2)};
    for (const auto& weight : chain.weights)
      if (const Tensor flow = gradients.of(*weight)) weights[weight.get()] = flow;
  }
  Pair y, dx;
  WeightGradients weights;
};

void near(lessons::Checks& checks, const std::string& name, const Pair& got, const Pair& want) {
  checks.near(name + ", first half", got.first, want.first);
  checks.near(name + ", second half", got.second, want.second);
}

void near(lessons::Checks& checks, const std::string& name, const WeightGradients& got, const Chain& chain,
          const WeightGradients& want) {
  for (std::size_t i = 0; i < chain.weights.size(); ++i) {
    const auto wanted = want.find(chain.weights[i].get());
    if (wanted == want.end()) continue;
    const auto found = got.find(chain.weights[i].get());
    checks.near(fmt::format("{} {}", name, i), found == got.end() ? Tensor() : found->second, wanted->second);
  }
}

void check_block(lessons::Checks& checks, const Rng& rng) {
  Chain chain(1, 4, rng.split(0));
  const Block& block = chain.blocks[0];
  const Pair x = draw(rng.split(1), {3, 4}), dy = draw(rng.split(2), {3, 4});
  const Reference want(chain, x, dy);
  checks.attempt("forward", [&] { near(checks, "forward", forward(block, x), want.y); });
  checks.attempt("inverse", [&] { near(checks, "inverse", inverse(block, want.y), x); });
  checks.attempt("backward", [&] {
    WeightGradients weights;
    chain.recorded = chain.unrecorded = 0;
    const Point at = backward(block, {want.y, dy}, weights);
    checks.equal("backward runs each branch once", chain.recorded + chain.unrecorded, 2);
    near(checks, "backward rebuilds x", at.value, x);
    near(checks, "backward, gradient of x", at.gradient, want.dx);
    near(checks, "backward, gradient of weight", weights, chain, want.weights);
  });
  const GradientProblem own = lessons::problem_of(
      {"x1", "x2"}, {x.first, x.second},
      [&](const Tensors& at) {
        const Pair y = forward(block, {at[0], at[1]});
        return concat({y.first, y.second}, 0).value;
      },
      [&](const Tensors& at, const Tensor& d) {
        WeightGradients weights;
        const Point point = backward(block, {forward(block, {at[0], at[1]}), {d.slice(0, 3), d.slice(3, 6)}}, weights);
        return Tensors{point.gradient.first, point.gradient.second};
      });
  checks.gradients("your gradient against differences of your forward", own, rng.split(3));
}

void check_chain(lessons::Checks& checks, const Rng& rng, std::size_t depth) {
  Chain chain(depth, 3, rng.split(0));
  const Pair x = draw(rng.split(1), {5, 3}), dy = draw(rng.split(2), {5, 3});
  const Reference want(chain, x, dy);
  const std::string name = fmt::format("chain of {}", depth);
  chain.recorded = chain.unrecorded = 0;
  checks.attempt(name + ": forward", [&] { near(checks, name + ": forward", forward_chain(chain.blocks, x), want.y); });
  checks.equal(name + ": forward records nothing", chain.recorded, 0);
  checks.equal(name + ": forward runs each branch once", chain.unrecorded, std::int64_t(2 * depth));
  checks.attempt(name + ": backward", [&] {
    WeightGradients weights;
    chain.recorded = chain.unrecorded = 0;
    const Point at = backward_chain(chain.blocks, {want.y, dy}, weights);
    checks.equal(name + ": backward runs each branch once", chain.recorded + chain.unrecorded, std::int64_t(2 * depth));
    near(checks, name + ": backward rebuilds x", at.value, x);
    near(checks, name + ": backward, gradient of x", at.gradient, want.dx);
    near(checks, name + ": gradient of shared weight", weights, chain, want.weights);
  });
}

Tensor sum_of(const Pair& pair) { return pair.first && pair.second ? add(pair.first, pair.second).value : Tensor(); }

// The library's op, which gives x to both streams and returns their sum.
void check_against_library(lessons::Checks& checks, const Rng& rng) {
  Chain chain(4, 3, rng.split(0));
  std::vector<ReversibleBlock> same;
  for (const Block& block : chain.blocks) {
    const auto as_library = [](const Branch& branch) {
      return sinkhorn::Branch{[&branch](const Tape& tape, const Var& x, const Var&, Choices&,
                                        const Residual& residual) { return add_to(residual, branch.run(tape, x)); },
                              {branch.weight}};
    };
    same.push_back({{as_library(block.f)}, {as_library(block.g)}});
  }
  const Tensor x = uniform(rng.split(1), {2, 3}, -1, 1, DType::f64),
               dy = uniform(rng.split(2), {2, 3}, -1, 1, DType::f64);
  const Tape tape = Tape::record();
  const Var leaf = tape.leaf(x);
  const Var y = reversible_chain(tape, leaf, {}, same);
  const Tensor dx = tape.backward(y, dy).of(leaf);
  checks.attempt("the library's chain", [&] {
    const Pair mine = forward_chain(chain.blocks, {x, x});
    checks.near("the library's chain: output", sum_of(mine), y.value);
    WeightGradients weights;
    const Pair d = backward_chain(chain.blocks, {mine, {dy, dy}}, weights).gradient;
    checks.near("the library's chain: gradient", sum_of(d), dx);
  });
}

// Bytes of tensors that live at once, at most, while a chain runs and while it is differentiated.
struct Peaks {
  std::size_t forward, backward;
};
Peaks peaks_of(std::size_t depth, const Rng& rng) {
  Chain chain(depth, 8, rng.split(0));
  const Pair x = draw(rng.split(1), {128, 8}), dy = draw(rng.split(2), {128, 8});
  Pool& pool = Pool::of(Device::cpu);
  Peaks peaks{};
  const auto peak_of = [&](const auto& body) {
    const std::size_t before = pool.stats().in_use;
    pool.reset_peak();
    body();
    return pool.stats().peak - before;
  };
  Pair y;
  peaks.forward = peak_of([&] { y = forward_chain(chain.blocks, x); });
  WeightGradients weights;
  peaks.backward = peak_of([&] { (void)backward_chain(chain.blocks, {y, dy}, weights); });
  return peaks;
}

void check_memory(lessons::Checks& checks, const Rng& rng) {
  checks.attempt("memory", [&] {
    const Peaks few = peaks_of(3, rng), many = peaks_of(30, rng);
    const auto compare = [&](const std::string& name, std::size_t a, std::size_t b) {
      // As shipped a chain may do nothing at all, which needs no memory: that is no success.
      checks.that(name, a > 0 && double(b) < 1.25 * double(a),
                  fmt::format("at most {} bytes of tensors live with 3 blocks, {} with 30", a, b));
    };
    compare("30 blocks forward hold no more memory than 3", few.forward, many.forward);
    compare("30 blocks backward hold no more memory than 3", few.backward, many.backward);
  });
}

}  // namespace

void check(lessons::Checks& checks) {
  for (const Rng& rng : checks.rounds()) {
    check_block(checks, rng.split(0));
    check_chain(checks, rng.split(1), 2);
    check_chain(checks, rng.split(2), 7);
    check_against_library(checks, rng.split(3));
  }
  check_memory(checks, checks.rounds()[0].split(4));
}

}  // namespace sinkhorn::lesson
