#include "nn/sort_net.h"

#include <cmath>
#include <limits>

namespace sinkhorn {

Tensor causal_choices(std::int64_t batch, std::int64_t heads, std::int64_t buckets, std::int64_t bucket,
                      std::int64_t n_top, const Tensor& given_mask) {
  const std::int64_t length = buckets * bucket;
  const Tensor mask = given_mask ? given_mask.to(Device::cpu) : Tensor();
  Tensor allowed(Shape{batch, heads, buckets, n_top + buckets}, DType::boolean);
  bool* out = allowed.data<bool>();
  std::vector<char> has_real(buckets);
  for (std::int64_t sequence = 0; sequence < batch; ++sequence) {
    for (std::int64_t head = 0; head < heads; ++head) {
      const std::int64_t shift = head >= heads / 2 ? bucket - 1 : 0;
      for (std::int64_t j = 0; j < buckets; ++j) {
        has_real[j] = !mask;
        for (std::int64_t slot = j * bucket; slot < (j + 1) * bucket && !has_real[j]; ++slot)
          has_real[j] = mask.data<bool>()[sequence * length + (slot + shift) % length];
      }
      for (std::int64_t u = 0; u < buckets; ++u) {
        for (std::int64_t j = 0; j < n_top; ++j) *out++ = true;
        for (std::int64_t j = 0; j < buckets; ++j) *out++ = j < u && has_real[j];
      }
    }
  }
  return allowed;
}

Var CausalSortNet::scores(const Scope& scope, const Var& q, const Var& kv, std::int64_t bucket, std::int64_t local,
                          std::int64_t n_top, const Tensor& mask) const {
  auto summary = [&](Summary kind, bool keys) {
    return keys ? bucket_summary(kv, kind, bucket, local, 0, mask) : bucket_summary(q, kind, bucket, local, 0, mask);
  };
  if (!linear.value) {
    const Var queries = summary(Summary::mean_at_first, false), keys = summary(Summary::sum_of_means, true);
    const Shape s = keys.shape();  // (B, h, N, d)
    const Var real = scale(matmul(queries, keys, false, true), 1 / std::sqrt(double(s[3])));
    const Var nulls = Tensor::zeros({s[0], s[1], s[2], n_top}, real.value.dtype(), real.value.device());
    return concat({nulls, real}, -1);
  }
  const Var seen = concat({summary(Summary::mean_at_first, true), summary(Summary::value_at_first, true)}, -1);
  const Shape s = seen.shape();  // (B, h, N, 2d)
  const Shape table = linear.value.shape();
  if (n_top + s[2] > table[3])
    fail("sort net: ", s[2], " buckets exceed the ", table[3] - n_top, " of the simple sort net; raise max_seq_len");
  const Var columns = slice(scope.leaf(linear), 3, 0, n_top + s[2]);
  return leaky_relu(matmul(seen, broadcast_to(columns, {s[0], s[1], s[3], n_top + s[2]})));
}

Routing CausalSortNet::operator()(const Scope& scope, const Var& q, const Var& kv, std::int64_t bucket,
                                  std::int64_t local, std::int64_t n_top, double temperature,
                                  const Tensor& mask) const {
  const Shape s = q.shape();  // (B, T, H, d)
  const Tensor allowed =
      causal_choices(s[0], s[2] - local, s[1] / bucket, bucket, n_top, mask).to(q.value.device());
  const Var open =
      mask_fill(scores(scope, q, kv, bucket, local, n_top, mask), allowed, -std::numeric_limits<double>::infinity());
  TopK chosen = top_k(open, n_top, temperature, scope.choices ? scope.choices->replayed() : Tensor());
  if (scope.choices) scope.choices->record(chosen.picks);
  scope.observe("picks", chosen.picks);
  return {chosen.weights, chosen.picks};
}

}  // namespace sinkhorn
