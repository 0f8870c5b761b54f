// The small layers: linear, layer norm, token embedding, axial positions, feed-forward.
#pragma once
#include <array>

#include "nn/module.h"

namespace sinkhorn {

/// y = x W' + b, W (out, in), in x's type, or added to a residual in its type (mixed precision: autograd/ops/matmul.h).
struct Linear {
  Linear(std::int64_t in, std::int64_t out, bool has_bias, Initializer& init)
      : weight(init.linear({out, in}, in)), bias(has_bias ? init.linear({out}, in, false) : Parameter()) {}

  Var operator()(const Scope& scope, const Var& x, const Residual& residual = {}, const Remake& x_again = {}) const {
    return linear(x, scope.leaf(weight), bias.value ? scope.leaf(bias) : Var(), {weight.rounded, bias.rounded},
                  residual, x_again);
  }
  /// gelu(y), and y, which a tape keeps; without one it is empty.
  std::pair<Var, Tensor> gelu(const Scope& scope, const Var& x) const {
    const auto [result, others] = apply_all(ops::LinearGelu{{weight.rounded, bias.rounded}},
                                            {x, scope.leaf(weight), bias.value ? scope.leaf(bias) : Var()});
    return {result, others[0]};
  }
  template <class See>
  void visit(See&& see) {
    see("weight", weight);
    see("bias", bias);
  }

  Parameter weight, bias;
};

/// Two linear maps of one input, without biases, as one product: (..., in) -> (..., out of both), the first's before
/// the second's. Nothing is copied where the weights lie behind each other (lay_together, FlatParameters). Of a group
/// of heads, each `width` outputs, their outputs alone.
Var beside(const Scope& scope, const Var& x, const Linear& first, const Linear& second, const HeadGroup& group,
           std::int64_t width);

/// LayerNorm over the last axis, eps 1e-5; written in the type that the scope computes in.
struct LayerNorm {
  LayerNorm(std::int64_t width, Initializer& init)
      : weight(init.constant({width}, 1)), bias(init.constant({width}, 0)) {}

  Var operator()(const Scope& scope, const Var& x) const {
    return layer_norm(x, scope.leaf(weight), scope.leaf(bias), 1e-5, scope.compute);
  }
  template <class See>
  void visit(See&& see) {
    see("weight", weight);
    see("bias", bias);
  }

  Parameter weight, bias;
};

/// Rows of a table (V, E), looked up by ids i32 (...) into (..., E).
struct Embedding {
  Embedding(std::int64_t rows, std::int64_t width, double stddev, Initializer& init)
      : weight(init.normal({rows, width}, stddev)) {}

  Var operator()(const Scope& scope, const Tensor& ids) const { return embedding(scope.leaf(weight), ids); }
  template <class See>
  void visit(See&& see) {
    see("weight", weight);
  }

  Parameter weight;
};

/// Position t is weights_0[t / b] + weights_1[t % b], or, given the width of each, one behind the other (behaviour 1.7,
/// 2.12).
struct AxialPositions {
  AxialPositions(std::int64_t buckets, std::int64_t bucket, std::int64_t width, double stddev, Initializer& init)
      : rows(init.normal({1, buckets, 1, width}, stddev)), columns(init.normal({1, 1, bucket, width}, stddev)) {}
  /// Concatenated: `axial_dims` add up to `width`, else an Error.
  AxialPositions(std::int64_t buckets, std::int64_t bucket, std::int64_t width, std::array<std::int64_t, 2> axial_dims,
                 double stddev, Initializer& init);

  /// The first `length` positions, (length, E).
  Var operator()(const Scope& scope, std::int64_t length) const;
  template <class See>
  void visit(See&& see) {
    see("weights_0", rows);
    see("weights_1", columns);
  }

  Parameter rows, columns;
  bool concatenated = false;
};

/// W2 drop(GELU(W1 x + b1)) + b2 with four times the width inside, or the gated GELU(a) * g. Where a piece's inside is
/// not kept for backward it is computed in `chunks` pieces of the tokens (behaviour 2.11), on a GPU of `least_piece` or
/// more, which fill it; so, too, where each piece draws dropout, which must not depend on the device. 0 chunks is one
/// piece, too, but not the published package's chunk wrapper, which its parameters' names tell of. A reversible chain
/// also goes back in pieces, of `tokens_at_once`. On a GPU a tape that lasts keeps W1 x + b1 alone and makes its GELU
/// again.
struct FeedForward {
  FeedForward(std::int64_t dim, bool gated, double dropout, std::int64_t chunks, Initializer& init)
      : w1(dim, 4 * dim * (gated ? 2 : 1), true, init),
        w2(4 * dim, dim, true, init),
        gated(gated),
        dropout(dropout),
        chunks(chunks) {}

  Var operator()(const Scope& scope, const Var& x, const Residual& residual = {}) const;

  /// Of `tokens`, how many a reversible chain should go back through at once: as the chunks say, but neither fewer than
  /// fill a GPU nor more than memory should be asked for. 0, all, where dropout draws for each chunk apart.
  static std::int64_t tokens_at_once(std::int64_t tokens, std::int64_t chunks, double active_dropout) {
    if (active_dropout > 0) return 0;
    const std::int64_t wanted = std::max<std::int64_t>(chunks, 1);
    return std::clamp((tokens + wanted - 1) / wanted, kLeastAtOnce, kMostAtOnce);
  }
  template <class See>
  void visit(See&& see) {
    see(chunks > 0 ? "fn.w1" : "w1", w1);
    see(chunks > 0 ? "fn.w2" : "w2", w2);
  }

  Linear w1, w2;
  bool gated;
  double dropout;
  std::int64_t chunks;
  std::int64_t least_piece = 4096;                                          // tokens
  static constexpr std::int64_t kLeastAtOnce = 16384, kMostAtOnce = 32768;  // tokens

 private:
  Var piece(const Scope& scope, const Var& x, const Residual& residual) const;
};

}  // namespace sinkhorn
