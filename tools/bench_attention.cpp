#include "tools/bench_attention.h"

#include <functional>
#include <optional>
#include <vector>

#include "autograd/ops.h"
#include "autograd/ops/bucketed_attention.h"
#include "cuda/blas.h"
#include "cuda/timer.h"
#include "tools/bench_run.h"

namespace sinkhorn {
namespace {

// The first two picks of a row differ, unless there is only one to choose.
Tensor random_picks(const Shape& shape, std::int64_t nulls) {
  Tensor picks(shape, DType::i32);
  const Tensor random = integers(Rng(7), shape, 1 << 20);
  const std::int64_t buckets = shape[2], n = shape[3];
  for (std::int64_t i = 0; i < picks.count(); ++i) {
    const std::int64_t choices = nulls + i / n % buckets, first = random.data<std::int32_t>()[i - i % n];
    picks.data<std::int32_t>()[i] = std::int32_t((first + i % n) % choices);
  }
  return picks;
}

}  // namespace

AttentionSpeed measure_attention(const BenchCase& at, Device device) {
  const ModelConfig& m = at.model;
  const std::int64_t sorting = m.sinkhorn_heads(), width = m.head_width(), buckets = at.length / m.bucket_size;
  const std::int64_t n = m.n_top_buckets;
  if (device == Device::cuda) cuda::allow_tf32(at.precision == "tf32");
  std::uint32_t tag = 0;
  const auto draw = [&](const Shape& shape, double least, DType dtype) {
    return uniform(Rng(6).split(++tag), shape, least, 1, dtype).to(device);
  };
  const DType dtype = bench_dtype(at.precision);
  const Tensor q = draw({at.batch, at.length, m.heads, width}, -1, dtype);
  const Tensor kv = draw({at.batch, at.length, 2, m.heads, width}, -1, dtype);
  const Shape routes{at.batch, sorting, buckets, n};
  const Tensor weights = draw(routes, 0.2, DType::f32), picks = random_picks(routes, n).to(device);
  const Tensor null_keys = draw({sorting, 1, width}, -1, dtype), null_values = draw({sorting, 1, width}, -1, dtype);
  const Tensor flow = draw(q.shape(), -1, dtype);
  const AttentionPattern pattern{m.bucket_size, m.bucket_size, m.n_local_attn_heads, true, true};
  const auto attend = [&](const auto& leaf) {
    return bucketed_attention(leaf(q), leaf(kv), {leaf(weights), picks}, {leaf(null_keys), leaf(null_values)}, pattern,
                              {}, {});
  };

  cuda::Timer timer(device);
  const auto median_ms = [&](const std::function<void()>& prepare, const std::function<void()>& timed) {
    constexpr double enough_ms = 2000;  // a processor takes longer for one
    std::vector<double> milliseconds;
    double all = 0;
    for (int i = 0; i < 13 && (milliseconds.empty() || all < enough_ms); ++i) {
      prepare();
      timer.start();
      timed();
      milliseconds.push_back(timer.stop());
      all += milliseconds.back();
      if (i == 2) milliseconds.clear();  // those were to warm up
    }
    return quantile(milliseconds, 0.5);
  };
  const auto nothing = [] {};
  const double forward = median_ms(nothing, [&] { attend([](const Tensor& x) { return Var(x); }); });
  std::optional<Tape> tape;
  Var y;
  const auto record = [&] {
    y = {};
    tape.emplace(Tape::record());
  };
  const auto recorded_forward = [&] { y = attend([&](const Tensor& x) { return tape->leaf(x); }); };
  const double recorded = median_ms(record, recorded_forward);
  const double backward = median_ms(
      [&] {
        record();
        recorded_forward();
      },
      [&] { tape->backward(y, flow); });

  const double tiles = double(at.batch * m.heads * buckets) * double(n + 1) * double(m.bucket_size * m.bucket_size);
  const auto speed = [&](int products, double ms) { return 2 * products * tiles * double(width) / (ms / 1000); };
  return {at.name, device, at.precision, speed(2, forward), speed(2, recorded), speed(5, backward)};
}

}  // namespace sinkhorn
