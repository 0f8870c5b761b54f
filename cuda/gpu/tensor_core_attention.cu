#include <algorithm>
#include <type_traits>

#include "autograd/memory.h"
#include "cuda/gpu/attention_cuts.h"
#include "cuda/sums.h"
#include "cuda/tensor_core_attention.h"

// Each block of threads works on up to 128 rows, 64 to a group of four warps, and walks over what they meet in steps of
// 64 or 32 rows, of which two lie in shared memory: one at work, one on its way. Forward and the gradient of queries
// hold queries and walk over keys; the gradient of keys and values holds keys and walks over the queries that chose
// their bucket, which a sorted list of the picks names. Scores are kept in units of log 2, and a block's weight is
// folded into the exponent where it can be: w p = 2^(score + log2 w). In f32 operands are planes of bf16 (mma.h), and
// results leave as the sums they are.
namespace sinkhorn::cuda {
namespace {

struct Partial {
  std::int64_t after;
  Global<const float> x;
  __device__ float operator()(std::int64_t row, std::int64_t column) const { return x[row * after + column]; }
};

constexpr std::string_view kName = "bucketed_attention";

}  // namespace

template <class T>
bool TensorCoreAttention<T>::takes(const AttentionShape& s) {
  static const int major = attribute(kName, cudaDevAttrComputeCapabilityMajor);
  static const int shared = attribute(kName, cudaDevAttrMaxSharedMemoryPerBlockOptin);
  if (major < 8 || s.width % 8 != 0 || s.width > 128) return false;
  return with_cut<T>(s.width, false, [&]<class Cut, bool kDrops>(Cut, std::bool_constant<kDrops>) {
    using Forward = typename Cut::template Forward<kDrops>;
    using Queries = typename Cut::template Queries<kDrops>;
    using Keys = typename Cut::template Keys<kDrops>;
    return std::max({Forward::shared_bytes(), Queries::shared_bytes(), Keys::shared_bytes()}) <= std::size_t(shared);
  });
}

template <class T>
void TensorCoreAttention<T>::forward(const Arguments& in, const Results& out) {
  const AttentionShape& s = in.shape;
  const TileInputs<T> inputs(in);
  const auto attend = [&]<class Kernel>(std::type_identity<Kernel>) {
    const Divisor tiles(pieces(s.pattern.bucket, Kernel::kRows));
    launch(kName, s.batch * s.heads * s.buckets() * tiles.value(), Kernel::kThreads, Kernel::shared_bytes(),
           Kernel{inputs, tiles, out.y, out.rest, out.log_sum_exp});
  };
  with_cut<T>(s.width, inputs.drop_end > 0, [&]<class Cut, bool kDrops>(Cut, std::bool_constant<kDrops>) {
    if (s.pattern.bucket > 64)
      attend(std::type_identity<typename Cut::template Forward<kDrops>>{});
    else
      attend(std::type_identity<typename Cut::template ForwardOfFew<kDrops>>{});
  });
}

template <class T>
void TensorCoreAttention<T>::backward(const Arguments& in, const Results& out, const T* dy, const Flows& flows) {
  const AttentionShape& s = in.shape;
  const TileInputs<T> inputs(in);
  const Tensor rows = workspace({s.batch, s.heads, s.length, 2}, DType::f32);
  auto* const rows_of_queries = reinterpret_cast<float2*>(rows.data<float>());
  with_cut<T>(s.width, inputs.drop_end > 0, [&]<class Cut, bool kDrops>(Cut, std::bool_constant<kDrops>) {
    using Kernel = typename Cut::template Queries<kDrops>;
    constexpr int warps = Kernel::kThreads / kWarp;
    const Divisor tiles(pieces(s.pattern.bucket, Kernel::kRows));
    const std::int64_t parts = s.buckets() * tiles.value() * warps;
    const Tensor dweights = workspace({s.batch * s.sorting(), parts, s.n_top}, DType::f32);
    const std::int64_t rows_of_nulls = s.nulls() > 0 ? s.batch * s.buckets() * tiles.value() : 0;
    const Tensor dnulls = workspace({2, s.sorting(), rows_of_nulls, s.width}, DType::f32);
    launch(kName, s.batch * s.heads * s.buckets() * tiles.value(), Kernel::kThreads, Kernel::shared_bytes(),
           Kernel{inputs, tiles, s.batch, out.y, out.rest, dy, out.log_sum_exp, flows.q, rows_of_queries,
                  dweights.data<float>(), dnulls.data<float>()});
    const auto add = [&](std::int64_t before, std::int64_t extent, std::int64_t after, const float* partial, auto* to) {
      if (to) sum_axis<float>(kName, Around(Shape{before, extent, after}, 1), Partial{after, partial}, to);
    };
    // A row of routing is one query bucket's, or that of all.
    add(s.batch * s.sorting() * s.lists, s.lists == 0 ? 0 : parts / s.lists, s.n_top, dweights.data<float>(),
        flows.weights);
    constexpr std::int64_t one_launch = 4096;  // rows that threads add one after the other
    if (flows.null_keys && flows.null_values && rows_of_nulls > 0 && rows_of_nulls <= one_launch)
      return sums::add_chunks_of_two(kName, s.sorting(), rows_of_nulls, s.width, dnulls.data<float>(),
                                     sums::Into<T>{flows.null_keys}, sums::Into<T>{flows.null_values});
    const float *keys = dnulls.data<float>(), *values = keys + dnulls.count() / 2;
    add(s.sorting(), rows_of_nulls, s.width, keys, flows.null_keys);
    add(s.sorting(), rows_of_nulls, s.width, values, flows.null_values);
  });

  const ChooserLists lists(kName, s, in.picks);
  with_cut<T>(s.width, inputs.drop_end > 0, [&]<class Cut, bool kDrops>(Cut, std::bool_constant<kDrops>) {
    using Kernel = typename Cut::template Keys<kDrops>;
    const Divisor tiles(pieces(s.pattern.key_bucket, Kernel::kRows));
    const std::int64_t later = lists.later_pieces();
    const Tensor sums = workspace({Kernel::bytes_of_pieces(later, tiles.value())}, DType::boolean);
    const Kernel kernel{inputs, tiles,           lists.choosers(), int(later),
                        dy,     rows_of_queries, flows.kv,         reinterpret_cast<float4*>(sums.raw())};
    launch(kName, (later + s.batch * s.heads * s.key_buckets()) * tiles.value(), Kernel::kThreads,
           Kernel::shared_bytes(), kernel);
    launch(kName, later * tiles.value(), Kernel::kThreads, AddPieces<Kernel>::shared_bytes(),
           AddPieces<Kernel>{kernel});
  });
}

template struct TensorCoreAttention<bf16>;
template struct TensorCoreAttention<float>;

}  // namespace sinkhorn::cuda
