// Attention within buckets, plainly: tiles of 32 queries by 32 keys in shared memory, products by ordinary arithmetic.
#include <cmath>

#include "autograd/ops/bucketed_attention.h"
#include "cuda/attention_pattern.h"
#include "cuda/sums.h"
#include "cuda/tensor_core_attention.h"

namespace sinkhorn::kernels {
namespace {

using namespace sinkhorn::cuda;

constexpr std::int64_t kTile = 32;                       // queries, and keys, of a tile
constexpr int kRows = int(kTile) * kWarp / kMaxThreads;  // queries of a tile that one warp works on; a lane is a key

template <class T>
using Inputs = AttentionInputs<T>;
template <class T>
using Head = AttentionHead<T>;
using Block = AttentionBlock;

// A tile in shared memory, (kTile, columns); one element between rows lets the lanes read a column without conflicts.
template <class R>
struct Tile {
  SINKHORN_DEVICE Tile(Thread& t, std::int64_t columns)
      : stride(columns + 1), memory(t.shared<R>(kTile * (columns + 1))) {}
  SINKHORN_DEVICE auto at(std::int64_t row, std::int64_t column) const -> decltype(auto) {
    return memory[row * stride + column];
  }
  std::int64_t stride;
  Shared<R> memory;
};
template <class R>
constexpr std::size_t tile_bytes(std::int64_t columns) {
  return (std::size_t(kTile * (columns + 1)) * sizeof(R) + 15) / 16 * 16;
}
template <class R>
constexpr std::size_t vector_bytes(std::int64_t count) {
  return (std::size_t(count) * sizeof(R) + 15) / 16 * 16;
}

template <class R>
SINKHORN_DEVICE void zero(const Thread& t, const Tile<R>& tile, std::int64_t width) {
  for (std::int64_t k = t.index(); k < kTile * width; k += t.size()) tile.at(k / width, k % width) = R(0);
}

// Row r of the tile becomes factor times the row of x that begins at place(r), or 0 if that is negative.
template <class T, class Place>
SINKHORN_DEVICE void load(const Thread& t, const Tile<Real<T>>& tile, std::int64_t width, Global<const T> x,
                          Real<T> factor, Place place) {
  for (std::int64_t k = t.index(); k < kTile * width; k += t.size()) {
    const std::int64_t row = k / width, from = place(row);
    tile.at(row, k - row * width) = from < 0 ? Real<T>(0) : factor * Real<T>(x[from + k - row * width]);
  }
}

// Keys and values of columns j0 .. of a block.
template <class T>
SINKHORN_DEVICE void load_keys(const Thread& t, const Head<T>& head, const Block& block, std::int64_t j0,
                               const Tile<Real<T>>& k, const Tile<Real<T>>& v) {
  const std::int64_t d = head.in.width;
  if (block.kind == Block::null) {
    const auto place = [&](std::int64_t) { return head.sorting_head * d; };
    load<T>(t, k, d, head.in.null_keys, 1, place);
    load<T>(t, v, d, head.in.null_values, 1, place);
    return;
  }
  for (int part = 0; part < 2; ++part)
    load<T>(t, part == 0 ? k : v, d, head.in.kv, 1, [&](std::int64_t r) {
      return j0 + r < block.width ? head.key_row(block.begin + j0 + r, part) : std::int64_t(-1);
    });
}

// Queries i0 .. of bucket u, and what belongs to their results.
template <class T>
SINKHORN_DEVICE void load_queries(const Thread& t, const Head<T>& head, std::int64_t u, std::int64_t i0, Real<T> factor,
                                  const Tile<Real<T>>& tile) {
  load<T>(t, tile, head.in.width, head.in.q, factor, [&](std::int64_t r) {
    return i0 + r < head.in.bucket ? head.query_row(u * head.in.bucket + i0 + r) : std::int64_t(-1);
  });
}
template <class T>
SINKHORN_DEVICE void load_results(const Thread& t, const Head<T>& head, std::int64_t u, std::int64_t i0,
                                  Global<const T> x, const Tile<Real<T>>& tile) {
  load<T>(t, tile, head.in.width, x, 1, [&](std::int64_t r) {
    return i0 + r < head.in.bucket ? head.result_row(u * head.in.bucket + i0 + r) : std::int64_t(-1);
  });
}

template <class R>
SINKHORN_DEVICE R dot(const Tile<R>& a, std::int64_t i, const Tile<R>& b, std::int64_t j, std::int64_t width) {
  // Four sums side by side: the shorter they are, the less they round, and none waits for the other.
  R sum[4] = {};
  for (std::int64_t first = 0; first < width; first += 4)
    for (int e = 0; e < 4; ++e)
      if (first + e < width) sum[e] += R(a.at(i, first + e)) * R(b.at(j, first + e));
  return (sum[0] + sum[1]) + (sum[2] + sum[3]);
}

template <class T>
SINKHORN_DEVICE Real<T> query_scale(const Inputs<T>& in) {
  return 1 / std::sqrt(Real<T>(in.width));
}

// y = softmax(w q k' / sqrt(d)) (w v), by the running form of softmax: one block per tile of queries.
template <class T>
struct Attend {
  using R = Real<T>;
  Inputs<T> in;
  std::int64_t tiles;  // of queries in a bucket
  Global<T> y, rest;
  Global<R> log_sum_exp;

  static std::size_t shared_bytes(std::int64_t width) {
    return 4 * tile_bytes<R>(width) + tile_bytes<R>(kTile) + vector_bytes<R>(kTile);
  }
  SINKHORN_DEVICE void operator()(Thread& t) const {
    constexpr R none = -std::numeric_limits<R>::infinity();
    const std::int64_t d = in.width, buckets = in.buckets;
    const std::int64_t i0 = t.block() % tiles * kTile, u = t.block() / tiles % buckets,
                       item = t.block() / tiles / buckets;
    const Head<T> head(in, int(item));
    const Tile<R> q(t, d), k(t, d), v(t, d), sum(t, d), p(t, kTile);
    const Shared<R> factor = t.shared<R>(kTile);
    R largest[kRows], total[kRows];
    for (int r = 0; r < kRows; ++r) {
      largest[r] = none;
      total[r] = 0;
    }
    load_queries(t, head, u, i0, query_scale(in), q);
    zero(t, sum, d);
    for (int c = 0; c < head.blocks(); ++c) {
      const Block block = head.block(u, c);
      if (block.kind == Block::closed) continue;
      const R w = head.weight(block);
      for (std::int64_t j0 = 0; j0 < block.width; j0 += kTile) {
        load_keys(t, head, block, j0, k, v);
        t.sync();
        for (int r = 0; r < kRows; ++r) {
          const std::int64_t i = t.warp() * kRows + r, j = j0 + t.lane();
          const R score = head.sees(u, i0 + i, block, j) ? w * dot(q, i, k, t.lane(), d) : none;
          const R above = Larger{}(largest[r], reduce_warp(t, score, Larger{}));
          const R x = score == none ? R(0) : math::exp(score - above);
          const R rescale = above == largest[r] ? R(1) : math::exp(largest[r] - above);
          total[r] = total[r] * rescale + reduce_warp(t, x, Plus{});
          largest[r] = above;
          p.at(i, t.lane()) = x == 0 ? R(0) : x * w * head.kept(u, i0 + i, block, j);
          if (t.lane() == 0) factor[i] = rescale;
        }
        t.sync();
        for (std::int64_t at = t.index(); at < kTile * d; at += t.size()) {
          const std::int64_t i = at / d, e = at - i * d;
          R x = R(sum.at(i, e)) * R(factor[i]);
          for (std::int64_t j = 0; j < kTile; ++j) x += R(p.at(i, j)) * R(v.at(j, e));
          sum.at(i, e) = x;
        }
        t.sync();
      }
    }
    for (int r = 0; r < kRows; ++r) {
      const std::int64_t i = t.warp() * kRows + r;
      if (t.lane() != 0) continue;
      factor[i] = total[r] == 0 ? R(0) : 1 / total[r];
      if (i0 + i < in.bucket)
        log_sum_exp[item * in.length + u * in.bucket + i0 + i] =
            total[r] == 0 ? std::numeric_limits<R>::infinity() : largest[r] + std::log(total[r]);
    }
    t.sync();
    for (std::int64_t at = t.index(); at < kTile * d; at += t.size()) {
      const std::int64_t i = at / d, e = at - i * d;
      if (i0 + i >= in.bucket) continue;
      const std::int64_t to = head.result_row(u * in.bucket + i0 + i) + e;
      const R x = R(sum.at(i, e)) * R(factor[i]);
      y[to] = x;
      if (rest) rest[to] = x - R(T(x));
    }
  }
};

// What one query and one column give backward.
template <class R>
struct Pair {
  R qk, dyv;    // q k' / sqrt(d) and dy v'
  R p, p_drop;  // the probability, before and after dropout
  R kept;
};
template <class T>
SINKHORN_DEVICE Pair<Real<T>> pair_of(const Head<T>& head, std::int64_t u, std::int64_t query, const Block& block,
                                      std::int64_t j, Real<T> w, Real<T> log_sum_exp, Real<T> qk, Real<T> dyv) {
  if (!head.sees(u, query, block, j)) return {};
  const Real<T> p = math::exp(w * qk - log_sum_exp), kept = head.kept(u, query, block, j);
  return {qk, dyv, p, p * kept, kept};
}

// dq, and per tile of queries: <dP, P> of each, and its shares of the weights' and nulls' gradients.
template <class T>
struct AttendQueryGradient {
  using R = Real<T>;
  Inputs<T> in;
  std::int64_t tiles;
  Global<const R> log_sum_exp;
  Global<const T> y, rest, dy;
  Global<T> dq;
  Global<R> dots;                      // (B, H, T), slots in rotated order
  Global<R> dweights;                  // (B, h, N, tiles, n)
  Global<R> dnull_keys, dnull_values;  // (h, B, N, tiles, d)
  std::int64_t batch;

  static std::size_t shared_bytes(std::int64_t width) {
    return 5 * tile_bytes<R>(width) + 2 * tile_bytes<R>(kTile) + 2 * vector_bytes<R>(width) + reducer_bytes<R>();
  }
  SINKHORN_DEVICE void operator()(Thread& t) const {
    const std::int64_t d = in.width, buckets = in.buckets;
    const std::int64_t tile = t.block() % tiles, i0 = tile * kTile, u = t.block() / tiles % buckets;
    const std::int64_t item = t.block() / tiles / buckets;
    const Head<T> head(in, int(item));
    const Tile<R> q(t, d), flow(t, d), k(t, d), v(t, d), sum(t, d), ds(t, kTile), p(t, kTile);
    const Shared<R> null_key = t.shared<R>(d), null_value = t.shared<R>(d);
    const BlockReducer<R> reduce(t);
    R dot_p[kRows], lse[kRows];
    load_queries(t, head, u, i0, query_scale(in), q);
    load_results(t, head, u, i0, dy, flow);
    for (std::int64_t e = t.index(); e < d; e += t.size()) {
      null_key[e] = R(0);
      null_value[e] = R(0);
    }
    zero(t, sum, d);
    t.sync();
    for (int r = 0; r < kRows; ++r) {  // <dP, P> = <dy, y>
      const std::int64_t i = t.warp() * kRows + r, slot = item * in.length + u * in.bucket + i0 + i;
      const bool there = i0 + i < in.bucket;
      R part = 0;
      for (std::int64_t e = t.lane(); there && e < d; e += kWarp) {
        const std::int64_t from = head.result_row(u * in.bucket + i0 + i) + e;
        part += R(flow.at(i, e)) * (R(y[from]) + (rest ? R(rest[from]) : R(0)));
      }
      dot_p[r] = reduce_warp(t, part, Plus{});
      lse[r] = there ? R(log_sum_exp[slot]) : R(0);
      if (there && t.lane() == 0) dots[slot] = dot_p[r];
    }
    for (int c = 0; c < head.blocks(); ++c) {
      const Block block = head.block(u, c);
      const R w = block.kind == Block::closed ? R(0) : head.weight(block);
      R dweight = 0;
      for (std::int64_t j0 = 0; block.kind != Block::closed && j0 < block.width; j0 += kTile) {
        load_keys(t, head, block, j0, k, v);
        t.sync();
        for (int r = 0; r < kRows; ++r) {
          const std::int64_t i = t.warp() * kRows + r;
          const Pair<R> x = pair_of(head, u, i0 + i, block, j0 + t.lane(), w, lse[r], dot(q, i, k, t.lane(), d),
                                    dot(flow, i, v, t.lane(), d));
          const R dscore = x.p * (w * x.kept * x.dyv - dot_p[r]);
          dweight += dscore * x.qk + x.p_drop * x.dyv;
          ds.at(i, t.lane()) = w * dscore;
          p.at(i, t.lane()) = w * x.p_drop;
        }
        t.sync();
        for (std::int64_t at = t.index(); at < kTile * d; at += t.size()) {
          const std::int64_t i = at / d, e = at - i * d;
          R x = sum.at(i, e);
          for (std::int64_t j = 0; j < kTile; ++j) x += R(ds.at(i, j)) * R(k.at(j, e));
          sum.at(i, e) = x;
        }
        for (std::int64_t e = t.index(); block.kind == Block::null && e < d; e += t.size()) {
          R key = null_key[e], value = null_value[e];
          for (std::int64_t i = 0; i < kTile; ++i) {
            R ds_i = 0, p_i = 0;  // of all columns, whose key is one
            for (std::int64_t j = 0; j < kTile; ++j) {
              ds_i += R(ds.at(i, j));
              p_i += R(p.at(i, j));
            }
            key += ds_i * R(q.at(i, e));
            value += p_i * R(flow.at(i, e));
          }
          null_key[e] = key;
          null_value[e] = value;
        }
        t.sync();
      }
      if (head.is_local || c >= in.n_top) continue;
      dweight = reduce.sum(dweight);
      const std::int64_t group = head.sequence * head.sorting + head.sorting_head;
      if (t.index() == 0) dweights[((group * buckets + u) * tiles + tile) * in.n_top + c] = dweight;
    }
    for (std::int64_t at = t.index(); at < kTile * d; at += t.size()) {
      const std::int64_t i = at / d, e = at - i * d;
      if (i0 + i < in.bucket) dq[head.query_row(u * in.bucket + i0 + i) + e] = query_scale(in) * R(sum.at(i, e));
    }
    if (head.is_local || in.nulls == 0) return;
    const std::int64_t batch_row = head.sorting_head * batch + head.sequence;
    for (std::int64_t e = t.index(); e < d; e += t.size()) {
      const std::int64_t at = ((batch_row * buckets + u) * tiles + tile) * d + e;
      dnull_keys[at] = R(null_key[e]);
      dnull_values[at] = R(null_value[e]);
    }
  }
};

// dk and dv of one tile of key slots, from all queries that see it: query bucket by query bucket, in order.
template <class T>
struct AttendKeyGradient {
  using R = Real<T>;
  Inputs<T> in;
  std::int64_t key_tiles;  // of a sequence
  Global<const R> log_sum_exp, dots;
  Global<const T> dy;
  Global<T> dkv;

  static std::size_t shared_bytes(std::int64_t width) { return 6 * tile_bytes<R>(width) + 2 * tile_bytes<R>(kTile); }
  SINKHORN_DEVICE void operator()(Thread& t) const {
    const std::int64_t d = in.width, s0 = t.block() % key_tiles * kTile, item = t.block() / key_tiles;
    const Head<T> head(in, int(item));
    const Tile<R> k(t, d), v(t, d), q(t, d), flow(t, d), dk(t, d), dv(t, d), ds(t, kTile), p(t, kTile);
    const Block slots{Block::keys, int(s0), in.key_length - int(s0), -1, 0};
    load_keys(t, head, slots, 0, k, v);
    zero(t, dk, d);
    zero(t, dv, d);
    for (std::int64_t u = 0; u < in.buckets; ++u) {
      for (int c = 0; c < head.blocks(); ++c) {
        const Block block = head.block(u, c);
        const bool meets = block.begin < s0 + kTile && block.begin + block.width > s0;
        if (!meets || block.kind == Block::closed || block.kind == Block::null) continue;
        const R w = head.weight(block);
        for (std::int64_t i0 = 0; i0 < in.bucket; i0 += kTile) {
          load_queries(t, head, u, i0, query_scale(in), q);
          load_results(t, head, u, i0, dy, flow);
          t.sync();
          for (int r = 0; r < kRows; ++r) {
            const std::int64_t i = t.warp() * kRows + r, slot = item * in.length + u * in.bucket + i0 + i;
            const bool there = i0 + i < in.bucket;
            const Pair<R> x =
                pair_of(head, u, i0 + i, block, s0 + t.lane() - block.begin, w, there ? R(log_sum_exp[slot]) : R(0),
                        dot(q, i, k, t.lane(), d), dot(flow, i, v, t.lane(), d));
            ds.at(i, t.lane()) = there ? w * x.p * (w * x.kept * x.dyv - R(dots[slot])) : R(0);
            p.at(i, t.lane()) = w * x.p_drop;
          }
          t.sync();
          for (std::int64_t at = t.index(); at < kTile * d; at += t.size()) {
            const std::int64_t j = at / d, e = at - j * d;
            R key = dk.at(j, e), value = dv.at(j, e);
            for (std::int64_t i = 0; i < kTile; ++i) {
              key += R(ds.at(i, j)) * R(q.at(i, e));
              value += R(p.at(i, j)) * R(flow.at(i, e));
            }
            dk.at(j, e) = key;
            dv.at(j, e) = value;
          }
          t.sync();
        }
      }
    }
    for (std::int64_t at = t.index(); at < kTile * d; at += t.size()) {
      const std::int64_t j = at / d, e = at - j * d;
      if (s0 + j >= in.key_length) continue;
      dkv[head.key_row(s0 + j, 0) + e] = R(dk.at(j, e));
      dkv[head.key_row(s0 + j, 1) + e] = R(dv.at(j, e));
    }
  }
};

template <class R>
struct Partial {
  std::int64_t after;
  Global<const R> x;
  SINKHORN_DEVICE R operator()(std::int64_t row, std::int64_t column) const { return x[row * after + column]; }
};

}  // namespace

template <class T>
void BucketedAttention<T>::forward(Cuda, const Arguments& in, const Results& out) {
  if constexpr (!std::is_same_v<T, double>)
    if (TensorCoreAttention<T>::takes(in.shape)) return TensorCoreAttention<T>::forward(in, out);
  const AttentionShape& s = in.shape;
  const std::int64_t tiles = pieces(s.pattern.bucket, kTile);
  launch("bucketed_attention", s.batch * s.heads * s.buckets() * tiles, kMaxThreads, Attend<T>::shared_bytes(s.width),
         Attend<T>{Inputs<T>(in), tiles, out.y, out.rest, out.log_sum_exp});
}

template <class T>
void BucketedAttention<T>::backward(Cuda, const Arguments& in, const Results& out, const T* dy, const Flows& d) {
  using R = Real<T>;
  if constexpr (!std::is_same_v<T, double>)
    if (TensorCoreAttention<T>::takes(in.shape)) return TensorCoreAttention<T>::backward(in, out, dy, d);
  const std::string_view op = "bucketed_attention";
  const AttentionShape& s = in.shape;
  const Inputs<T> inputs(in);
  const std::int64_t tiles = pieces(s.pattern.bucket, kTile), key_tiles = pieces(inputs.key_length, kTile);
  const std::int64_t parts = s.buckets() * tiles;
  const Tensor dots = workspace({s.batch, s.heads, s.length}, dtype_of<R>);
  const Tensor dweights = workspace({s.batch * s.sorting(), parts, s.n_top}, dtype_of<R>);
  const Tensor dnulls = workspace({2, s.sorting(), s.nulls() > 0 ? s.batch * parts : 0, s.width}, dtype_of<R>);
  R *null_keys = dnulls.data<R>(), *null_values = null_keys + dnulls.count() / 2;
  launch(op, s.batch * s.heads * parts, kMaxThreads, AttendQueryGradient<T>::shared_bytes(s.width),
         AttendQueryGradient<T>{inputs, tiles, out.log_sum_exp, out.y, out.rest, dy, d.q, dots.data<R>(),
                                dweights.data<R>(), null_keys, null_values, s.batch});
  launch(op, s.batch * s.heads * key_tiles, kMaxThreads, AttendKeyGradient<T>::shared_bytes(s.width),
         AttendKeyGradient<T>{inputs, key_tiles, out.log_sum_exp, dots.data<R>(), dy, d.kv});
  const auto add = [&](std::int64_t before, std::int64_t extent, std::int64_t after, const R* partial, auto* y) {
    if (y) sum_axis<R>(op, Around(Shape{before, extent, after}, 1), Partial<R>{after, partial}, y);
  };
  // A row of routing is one query bucket's, or that of all.
  add(s.batch * s.sorting() * inputs.lists, parts / inputs.lists, s.n_top, dweights.data<R>(), d.weights);
  add(s.sorting(), s.batch * parts, s.width, null_keys, d.null_keys);
  add(s.sorting(), s.batch * parts, s.width, null_values, d.null_values);
}

template struct BucketedAttention<float>;
template struct BucketedAttention<double>;
template struct BucketedAttention<bf16>;

}  // namespace sinkhorn::kernels
