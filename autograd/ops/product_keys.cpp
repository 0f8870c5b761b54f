#include "autograd/ops/product_keys.h"

#include <algorithm>

namespace sinkhorn {
namespace ops {
namespace {

kernels::KeyHalves halves_of(const Shape& scores, std::int64_t n) {
  return {scores.product(1, scores.rank() - 1), scores[-1], n};
}

// (2, ..., keys) -> (..., n)
Shape picked(const Shape& scores, std::int64_t n) { return Shape(scores.extents().subspan(1)).with(-1, n); }

}  // namespace

Output ProductKeyTopK::forward(Saved& save, Inputs in) const {
  constexpr std::int64_t kMostKeys = 46340;  // the largest whose square is an i32
  const Tensor &scores = in[0], &fixed = in[1];
  const Shape& s = scores.shape();
  if (s.rank() < 2 || s[0] != 2) fail(name, ": needs scores (2, ..., keys), got ", s);
  if (s[-1] < 1 || s[-1] > kMostKeys) fail(name, ": needs 1 to ", kMostKeys, " keys a half, got ", s[-1]);
  if (n < 1) fail(name, ": n must be at least 1, got ", n);
  const std::int64_t clamped = std::min(n, s[-1]);
  const Shape shape = picked(s, clamped);
  if (fixed && (fixed.dtype() != DType::i32 || fixed.shape() != shape))
    fail(name, ": picks must be i32 ", shape, ", got ", fixed.dtype(), " ", fixed.shape());
  const Tensor sums = scores.like(shape), picks = fixed ? fixed : Tensor(shape, DType::i32, scores.device());
  dispatch(scores, [&]<class T>(auto space) {
    kernels::ProductKeyTopK<T>::forward(space, halves_of(s, clamped), scores.data<T>(),
                                        fixed.data_or_null<std::int32_t>(), sums.data<T>(), picks.data<std::int32_t>());
  });
  save.tensors = {picks};
  save.shapes = {s};
  return {sums, {picks}};
}

Tensors ProductKeyTopK::backward(const Saved& saved, const Tensor& dy) const {
  const Tensor &picks = saved.tensors[0], dscores = dy.like(saved.shapes[0]);
  dispatch(dy, [&]<class T>(auto space) {
    kernels::ProductKeyTopK<T>::backward(space, halves_of(dscores.shape(), picks.shape()[-1]),
                                         picks.data<std::int32_t>(), dy.data<T>(), dscores.data<T>());
  });
  return {dscores, {}};
}

std::vector<Case<ProductKeyTopK>> ProductKeyTopK::cases() {
  auto inputs = [](Shape scores) { return [=](Draw& draw) { return Tensors{draw.uniform(scores), {}}; }; };
  return {{"rows", {3}, inputs({2, 2, 3, 5})},
          {"one pick", {1}, inputs({2, 4, 3})},
          {"all keys", {4}, inputs({2, 3, 4})},
          {"more picks than keys", {5}, inputs({2, 3, 2})},
          {"one key", {2}, inputs({2, 3, 1})},
          {"no middle axes", {2}, inputs({2, 6})},
          {"no rows", {2}, inputs({2, 0, 3})},
          {"given picks", {2}, [](Draw& draw) {
             return Tensors{draw.uniform({2, 2, 3}), Tensor::from<std::int32_t>({5, 3, 8, 0}, {2, 2})};
           }}};
}

}  // namespace ops

ProductKeys product_key_top_k(const Var& scores, std::int64_t n, const Tensor& picks) {
  auto [sums, others] = apply_all(ops::ProductKeyTopK{n}, {scores, picks});
  return {sums, others[0]};
}

}  // namespace sinkhorn
