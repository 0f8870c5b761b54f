#include "autograd/ops/bucket_routing.h"

#include <cmath>

#include "autograd/best_of_stream.h"

namespace sinkhorn {
namespace ops {

kernels::BucketRoutes RouteBuckets::routes(Inputs in) const {
  const Tensor &queries = in[0], &keys = in[1], &open = in[2], &picks = in[3];
  const Shape &q = queries.shape(), &k = keys.shape();
  if (q.rank() != 4 || k.rank() != 4 || k.with(2, q[2]) != q || queries.dtype() != keys.dtype())
    fail("route_buckets: expected queries (B, h, N, d) and keys (B, h, M, d) of one dtype, got ", queries.dtype(), " ",
         q, " and ", keys.dtype(), " ", k);
  if (n < 1 || n > kMostStreamedPicks) fail("route_buckets: n must be in 1 .. ", kMostStreamedPicks, ", got ", n);
  if (!(temperature > 0)) fail("route_buckets: temperature must be above 0, got ", temperature);
  if (causal && q[2] != k[2])
    fail("route_buckets: causal routing needs as many key buckets as query buckets, got ", k[2], " and ", q[2]);
  const std::int64_t parts = open && open.shape().rank() == 3 ? open.shape()[1] : 1;
  if (open && (open.dtype() != DType::boolean || parts < 1 || parts > 2 || open.shape() != Shape{q[0], parts, k[2]}))
    fail("route_buckets: open must be bool (B, 1, M) or (B, 2, M) with B ", q[0], " and M ", k[2], ", got ",
         open.dtype(), " ", open.shape());
  if (const Shape expected = q.with(-1, n); picks && (picks.dtype() != DType::i32 || picks.shape() != expected))
    fail("route_buckets: picks must be i32 ", expected, ", got ", picks.dtype(), " ", picks.shape());
  return {q[0],       q[1], q[2], k[2], q[3], causal ? n : 0, parts, causal, int(n), 1 / std::sqrt(double(q[3])),
          temperature};
}

Output RouteBuckets::forward(Saved& save, Inputs in) const {
  const kernels::BucketRoutes r = routes(in);
  const Tensor &queries = in[0], &open = in[2], &fixed = in[3];
  const Shape shape{r.batch, r.heads, r.rows, n};
  const Tensor weights = queries.like(shape), picks = fixed ? fixed : Tensor(shape, DType::i32, queries.device());
  const Tensor chosen({r.batch, r.heads, r.rows, n, 3}, wide(queries.dtype()), queries.device());
  dispatch(queries, [&]<class T>(auto space) {
    kernels::RouteBuckets<T>::forward(space, r, queries.data<T>(), in[1].data<T>(), open.data_or_null<bool>(),
                                      fixed.data_or_null<std::int32_t>(), weights.data<T>(), picks.data<std::int32_t>(),
                                      chosen.data<Real<T>>());
  });
  save.tensors = {queries, in[1], open, picks, chosen};
  return {weights, {picks}};
}

Tensors RouteBuckets::backward(const Saved& saved, const Tensor& dy) const {
  const Tensor &queries = saved.tensors[0], &keys = saved.tensors[1], &open = saved.tensors[2];
  Tensor dqueries, dkeys;
  if (saved.wants[0]) dqueries = queries.like();
  if (saved.wants[1]) dkeys = keys.like();
  dispatch(dy, [&]<class T>(auto space) {
    kernels::RouteBuckets<T>::backward(space, routes({saved.tensors.data(), 4}), queries.data<T>(), keys.data<T>(),
                                       open.data_or_null<bool>(), saved.tensors[3].data<std::int32_t>(),
                                       saved.tensors[4].data<Real<T>>(), dy.data<T>(), dqueries.data_or_null<T>(),
                                       dkeys.data_or_null<T>());
  });
  return {dqueries, dkeys, {}, {}};
}

std::vector<Case<RouteBuckets>> RouteBuckets::cases() {
  auto inputs = [](Shape queries, std::int64_t columns, std::int64_t open_parts = 0) {
    return [=](Draw& draw) {
      return Tensors{draw.uniform(queries), draw.uniform(queries.with(2, columns)),
                     open_parts > 0 ? draw.mask({queries[0], open_parts, columns}) : Tensor(), Tensor()};
    };
  };
  return {{"causal", {2, 0.75}, inputs({2, 1, 4, 2}, 4)},
          {"causal, padded", {2, 0.75}, inputs({2, 3, 3, 1}, 3, 2)},
          {"one bucket", {1, 0.75}, inputs({1, 2, 1, 2}, 1)},
          {"three picks", {3, 0.5}, inputs({1, 1, 5, 2}, 5)},
          {"both directions", {2, 0.75, false}, inputs({1, 2, 3, 2}, 4)},
          {"both directions, padded", {2, 0.75, false}, inputs({2, 1, 2, 2}, 4, 1)},
          {"one row for all", {3, 1, false}, inputs({2, 1, 1, 2}, 4, 1)},
          {"more picks than buckets", {4, 1, false}, inputs({1, 2, 2, 2}, 3)},
          {"queries constant", {2, 1}, inputs({1, 2, 3, 2}, 3), {0}},
          {"keys constant", {2, 1}, inputs({1, 2, 3, 2}, 3), {1}},
          {"given picks", {2, 0.75}, [](Draw& draw) {
             return Tensors{draw.uniform({1, 1, 4, 2}),
                            draw.uniform({1, 1, 4, 2}),
                            {},
                            Tensor::from<std::int32_t>({1, -1, 2, 0, 3, 2, 0, 4}, {1, 1, 4, 2})};
           }}};
}

}  // namespace ops

TopK route_buckets(const BucketScores& scores, std::int64_t n, double temperature, const Tensor& picks) {
  auto [weights, others] =
      apply_all(ops::RouteBuckets{n, temperature, scores.causal}, {scores.queries, scores.keys, scores.open, picks});
  return {weights, others[0]};
}

}  // namespace sinkhorn
