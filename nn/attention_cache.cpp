#include "nn/attention_cache.h"

namespace sinkhorn {

AttentionCache::AttentionCache(const CacheShape& s, double temperature, DType dtype, Device device)
    : shape_(s), temperature_(temperature) {
  if (s.capacity < 1 || s.capacity % s.bucket != 0)
    fail("attention cache: the capacity ", s.capacity, " is not a multiple of the bucket size ", s.bucket);
  const Shape tokens{s.rows, s.heads, s.capacity, s.width}, sums{s.rows, s.sorting(), s.width};
  const Shape chosen{s.rows, s.sorting(), s.n_top};
  for (Tensor* x : {&keys_, &values_}) *x = Tensor(tokens, dtype, device);
  for (Tensor* x : {&query_sums_, &key_sums_, &mean_sums_}) *x = Tensor(sums, DType::f64, device);
  summaries_ = Tensor({s.rows, s.sorting(), s.buckets(), s.width}, dtype, device);
  weights_ = Tensor(chosen, dtype, device);
  picks_ = Tensor(chosen, DType::i32, device);
}

template <class T>
typename kernels::CachedAttention<T>::Memory AttentionCache::memory() const {
  return {shape_,
          temperature_,
          keys_.data<T>(),
          values_.data<T>(),
          query_sums_.data<double>(),
          key_sums_.data<double>(),
          mean_sums_.data<double>(),
          summaries_.data<T>(),
          weights_.data<T>(),
          picks_.data<std::int32_t>()};
}

void AttentionCache::remember(const NewTokens& tokens, const Tensor& qkv, const Tensor& table) const {
  const CacheShape& s = shape_;
  const std::int64_t count = tokens.rows.count(), length = qkv.shape().rank() == 5 ? qkv.shape()[1] : 0;
  if (qkv.shape() != Shape{count, length, 3, s.heads, s.width})
    fail("attention cache: expected qkv (R, T, 3, H, d) of ", count, " entries, ", s.heads, " heads and width ",
         s.width, ", got ", qkv.shape());
  const std::int64_t columns = table ? table.shape()[3] : 0;
  if (table && columns < s.n_top + s.buckets() - 1)
    fail("attention cache: ", s.buckets(), " buckets exceed the table ", table.shape(), " of the simple sort net");
  const NewTokens there = tokens.to(qkv.device());
  dispatch(qkv, [&]<class T>(auto space) {
    kernels::CachedAttention<T>::remember(space, memory<T>(), there.placed(length), qkv.data<T>(),
                                          table.data_or_null<T>(), columns);
  });
}

Tensor AttentionCache::attend(const NewTokens& tokens, const Tensor& qkv, const Tensor& null_keys,
                              const Tensor& null_values) const {
  const CacheShape& s = shape_;
  const Shape expected{tokens.rows.count(), 1, 3, s.heads, s.width};
  if (qkv.shape() != expected)
    fail("attention cache: expected qkv (R, 1, 3, H, d) = ", expected, ", got ", qkv.shape());
  Tensor y = qkv.like({expected[0], 1, s.heads, s.width});
  const NewTokens there = tokens.to(qkv.device());
  dispatch(qkv, [&]<class T>(auto space) {
    kernels::CachedAttention<T>::attend(space, memory<T>(), there.placed(1), qkv.data<T>(), null_keys.data<T>(),
                                        null_values.data<T>(), y.data<T>());
  });
  return y;
}

}  // namespace sinkhorn
