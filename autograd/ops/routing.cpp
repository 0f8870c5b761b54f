#include "autograd/ops/routing.h"

namespace sinkhorn {
namespace ops {
namespace {

void check_picks(std::string_view name, const Tensor& picks, const Shape& shape) {
  if (picks.dtype() != DType::i32 || picks.shape() != shape)
    fail(name, ": picks must be i32 ", shape, ", got ", picks.dtype(), " ", picks.shape());
}

// Picks as a routing draws them, -1 among them.
Tensor draw_picks(Draw& draw, Shape shape, std::int32_t buckets) {
  Tensor picks = draw.integers(shape, buckets + 1);
  for (std::int32_t& pick : picks.span<std::int32_t>()) --pick;
  return picks;
}

}  // namespace

Output TopK::forward(Saved& save, Inputs in) const {
  const Tensor &logits = in[0], &fixed = in[1];
  if (logits.shape().rank() == 0) fail("top_k: needs a last axis, got shape ", logits.shape());
  if (n < 1) fail("top_k: n must be at least 1, got ", n);
  if (!(temperature > 0)) fail("top_k: temperature must be above 0, got ", temperature);
  const Shape shape = logits.shape().with(-1, n);
  if (fixed) check_picks(name, fixed, shape);
  const Tensor weights = logits.like(shape), picks = fixed ? fixed : Tensor(shape, DType::i32, logits.device());
  dispatch(logits, [&]<class T>(auto space) {
    kernels::TopK<T>::forward(space, kernels::Rows(logits.shape()), n, Real<T>(temperature), logits.data<T>(),
                              fixed.data_or_null<std::int32_t>(), weights.data<T>(), picks.data<std::int32_t>());
  });
  save.tensors = {logits, picks};
  return {weights, {picks}};
}

Tensors TopK::backward(const Saved& saved, const Tensor& dy) const {
  const Tensor &logits = saved.tensors[0], &picks = saved.tensors[1];
  const Tensor dlogits = logits.like();
  dispatch(logits, [&]<class T>(auto space) {
    kernels::TopK<T>::backward(space, kernels::Rows(logits.shape()), n, Real<T>(temperature), logits.data<T>(),
                               picks.data<std::int32_t>(), dy.data<T>(), dlogits.data<T>());
  });
  return {dlogits, {}};
}

std::vector<Case<TopK>> TopK::cases() {
  auto inputs = [](Shape logits) { return [=](Draw& draw) { return Tensors{draw.uniform(logits), {}}; }; };
  return {{"rows", {2, 0.75}, inputs({2, 3, 5})},
          {"one pick", {1, 1}, inputs({4, 3})},
          {"all columns", {3, 0.5}, inputs({2, 3})},
          {"more picks than columns", {4, 0.75}, inputs({3, 2})},
          {"one row", {2, 2}, inputs({1, 4})},
          {"given picks", {2, 0.75}, [](Draw& draw) {
             return Tensors{draw.uniform({3, 4}), Tensor::from<std::int32_t>({2, 0, 1, 3, 0, -1}, {3, 2})};
           }}};
}

Output GatherBuckets::forward(Saved& save, Inputs in) const {
  const Tensor &x = in[0], &weights = in[1], &picks = in[2];
  const Shape &s = x.shape(), &w = weights.shape();
  if (s.rank() != 4 || w.rank() != 3 || s[0] != w[0])
    fail("gather_buckets: needs x (G, M, c, d) and weights (G, N, n), got ", s, " and ", w);
  if (x.dtype() != weights.dtype()) fail("gather_buckets: dtypes differ: x ", x.dtype(), ", weights ", weights.dtype());
  check_picks(name, picks, w);
  const Tensor y = x.like({w[0], w[1], w[2] * s[2], s[3]});
  dispatch(x, [&]<class T>(auto space) {
    kernels::GatherBuckets<T>::forward(space, {s[0], s[1], s[2] * s[3], w[1] * w[2]}, x.data<T>(), weights.data<T>(),
                                       picks.data<std::int32_t>(), y.data<T>());
  });
  save.tensors = {x, weights, picks};
  return y;
}

Tensors GatherBuckets::backward(const Saved& saved, const Tensor& dy) const {
  const Tensor &x = saved.tensors[0], &weights = saved.tensors[1], &picks = saved.tensors[2];
  const Shape &s = x.shape(), &w = weights.shape();
  Tensor dx, dweights;
  if (saved.wants[0]) dx = x.like();
  if (saved.wants[1]) dweights = weights.like();
  dispatch(x, [&]<class T>(auto space) {
    kernels::GatherBuckets<T>::backward(space, {s[0], s[1], s[2] * s[3], w[1] * w[2]}, x.data<T>(), weights.data<T>(),
                                        picks.data<std::int32_t>(), dy.data<T>(), dx.data_or_null<T>(),
                                        dweights.data_or_null<T>());
  });
  return {dx, dweights, {}};
}

std::vector<Case<GatherBuckets>> GatherBuckets::cases() {
  auto inputs = [](Shape x, Shape weights) {
    return [=](Draw& draw) {
      return Tensors{draw.uniform(x), draw.uniform(weights), draw_picks(draw, weights, std::int32_t(x[1]))};
    };
  };
  return {{"picks", {}, inputs({2, 3, 2, 4}, {2, 5, 2})},
          {"one bucket", {}, inputs({1, 1, 3, 2}, {1, 4, 1})},
          {"no rows", {}, inputs({2, 3, 2, 2}, {2, 0, 2})},
          {"weights constant", {}, inputs({2, 3, 2, 2}, {2, 2, 2}), {1}},
          {"x constant", {}, inputs({2, 3, 2, 2}, {2, 2, 2}), {0}}};
}

Output SortingMatrix::forward(Saved& save, Inputs in) const {
  const Tensor &weights = in[0], &picks = in[1];
  const Shape& w = weights.shape();
  if (w.rank() != 3) fail("sorting_matrix: needs weights (G, N, n), got ", w);
  check_picks(name, picks, w);
  const Tensor y = weights.like({w[0], w[1] * w[2], columns});
  dispatch(weights, [&]<class T>(auto space) {
    kernels::SortingMatrix<T>::forward(space, w.count(), columns, weights.data<T>(), picks.data<std::int32_t>(),
                                       y.data<T>());
  });
  save.tensors = {picks};
  return y;
}

Tensors SortingMatrix::backward(const Saved& saved, const Tensor& dy) const {
  const Tensor& picks = saved.tensors[0];
  const Tensor dweights = dy.like(picks.shape());
  dispatch(dy, [&]<class T>(auto space) {
    kernels::SortingMatrix<T>::backward(space, picks.count(), columns, picks.data<std::int32_t>(), dy.data<T>(),
                                        dweights.data<T>());
  });
  return {dweights, {}};
}

std::vector<Case<SortingMatrix>> SortingMatrix::cases() {
  auto inputs = [](Shape weights, std::int32_t columns) {
    return [=](Draw& draw) { return Tensors{draw.uniform(weights), draw_picks(draw, weights, columns)}; };
  };
  return {{"picks", {4}, inputs({2, 3, 2}, 4)}, {"one column", {1}, inputs({1, 4, 1}, 1)}};
}

}  // namespace ops

TopK top_k(const Var& logits, std::int64_t n, double temperature, const Tensor& picks) {
  auto [weights, others] = apply_all(ops::TopK{n, temperature}, {logits, picks});
  return {weights, others[0]};
}

Var gather_buckets(const Var& x, const Var& weights, const Tensor& picks) {
  return apply(ops::GatherBuckets{}, {x, weights, picks});
}

Var sorting_matrix(const Var& weights, const Tensor& picks, std::int64_t columns) {
  return apply(ops::SortingMatrix{columns}, {weights, picks});
}

}  // namespace sinkhorn
