#include "autograd/ops/bucketed_attention.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "autograd/cpu/gemm.h"
#include "autograd/cpu/random_words.h"
#include "autograd/cpu/reduce.h"

namespace sinkhorn::kernels {
namespace {

// A stretch of `width` key columns that a query bucket looks at, the first of them column `at` of the tile.
struct Block {
  enum Kind { closed, null, keys, own } kind;
  std::int64_t begin;  // first slot of its keys; of no meaning for null, whose one key stands in every column
  std::int64_t width;
  std::int64_t choice;  // place of its weight in (B, h, lists, n); -1: weight 1
  std::int64_t at = 0;
};

// The matrices of one head at work. Each thread keeps its own from head to head, so that their memory is asked for
// once.
template <class R>
struct Workspace {
  std::vector<R> q, k, v, out, tile;                        // forward; q is scaled by 1 / sqrt(d)
  std::vector<R> dy, dq, dk, dv, qk, dyv, p, ds, dweights;  // backward

  static Workspace& of_this_thread() {
    thread_local Workspace workspace;
    return workspace;
  }
};

// One head of one sequence. Its rows are brought into the order in which the head sees them and into the type of
// computation once; then every block of keys is a contiguous matrix. The scores of one query bucket live in `tile`:
// (bucket, blocks * bucket).
template <class T>
class Head {
 public:
  using R = Real<T>;
  using Rows = std::vector<R>;
  using Arguments = typename BucketedAttention<T>::Arguments;
  using Results = typename BucketedAttention<T>::Results;
  using Flows = typename BucketedAttention<T>::Flows;

  Head(const Arguments& in, std::int64_t sequence, std::int64_t head)
      : in_(in),
        s_(in.shape),
        pattern_(s_.pattern),
        b_(pattern_.bucket),
        d_(s_.width),
        sequence_(sequence),
        head_(head),
        is_local_(head < pattern_.local),
        sorting_head_(head - pattern_.local),
        shift_(is_local_ ? 0 : s_.shift(sorting_head_)),
        columns_(is_local_ ? b_ * (pattern_.causal ? 2 : 3) : s_.n_top * pattern_.key_bucket + (pattern_.own ? b_ : 0)),
        w_(Workspace<R>::of_this_thread()) {
    load(in.q, s_.length, s_.query_stride(), w_.q);
    load(in.kv, s_.key_length, s_.key_stride(), w_.k);
    load(in.kv + s_.heads * d_, s_.key_length, s_.key_stride(), w_.v);
    for (R& x : w_.q) x *= scale();
    if (!is_local_ && s_.nulls() > 0) {
      null_key_.assign(in.null_keys + sorting_head_ * d_, in.null_keys + (sorting_head_ + 1) * d_);
      null_value_.assign(in.null_values + sorting_head_ * d_, in.null_values + (sorting_head_ + 1) * d_);
    }
  }

  void forward(const Results& to) {
    R* const log_sum_exp = to.log_sum_exp + (sequence_ * s_.heads + head_) * s_.length;
    Rows &out = w_.out, &tile = w_.tile;
    out.assign(w_.q.size(), R(0));
    tile.resize(b_ * columns_);
    for (std::int64_t u = 0; u < s_.buckets(); ++u) {
      choose(u);
      products(&w_.q[u * b_ * d_], w_.k, null_key_, tile);
      weigh_and_close(u, tile);
      for (std::int64_t i = 0; i < b_; ++i) log_sum_exp[u * b_ + i] = softmax(&tile[i * columns_]);
      drop(u, tile);
      for (const Block& part : stretches_)
        accumulate(weight(part), &tile[part.at], w_.v, null_value_, part, &out[u * b_ * d_]);
    }
    store(out, to.y, s_.length, s_.heads * d_);
    if (!to.rest) return;
    for (R& x : out) x -= R(T(x));
    store(out, to.rest, s_.length, s_.heads * d_);
  }

  // Writes this head's parts of dq, dkv and dweights, and its share of the null gradients, one row each.
  void backward(const Results& of, const T* dy, const Flows& d, R* d_null_key, R* d_null_value) {
    const R* const log_sum_exp = of.log_sum_exp + (sequence_ * s_.heads + head_) * s_.length;
    load(of.y, s_.length, s_.heads * d_, w_.out);
    if (of.rest) {
      load(of.rest, s_.length, s_.heads * d_, w_.dq);
      for (std::size_t k = 0; k < w_.out.size(); ++k) w_.out[k] += w_.dq[k];
    }
    load(dy, s_.length, s_.heads * d_, w_.dy);
    Rows &dq = w_.dq, &dk = w_.dk, &dv = w_.dv, &qk = w_.qk, &dyv = w_.dyv, &p = w_.p, &ds = w_.ds, &dw = w_.dweights;
    dq.assign(w_.q.size(), R(0));
    for (Rows* sum : {&dk, &dv}) sum->assign(w_.k.size(), R(0));
    const std::int64_t choices = is_local_ ? 0 : s_.lists * s_.n_top, first_choice = choice_of(0);
    dw.assign(choices, R(0));
    for (Rows* tile : {&qk, &dyv}) tile->resize(b_ * columns_);
    for (std::int64_t u = 0; u < s_.buckets(); ++u) {
      const R *q = &w_.q[u * b_ * d_], *dy_u = &w_.dy[u * b_ * d_];
      choose(u);
      products(q, w_.k, null_key_, qk);
      products(dy_u, w_.v, null_value_, dyv);
      p = qk;
      weigh_and_close(u, p);
      for (std::int64_t i = 0; i < b_; ++i) exponentiate(&p[i * columns_], log_sum_exp[u * b_ + i]);
      ds = p;
      drop(u, p);  // p: as it multiplies the values; ds: as softmax left it
      for (std::int64_t i = 0; i < b_; ++i)
        score_gradient(&ds[i * columns_], &p[i * columns_], &dyv[i * columns_],
                       row_dot(&w_.out[(u * b_ + i) * d_], dy_u + i * d_));
      for (const Block& part : stretches_) {
        if (part.choice >= 0) dw[part.choice - first_choice] += tile_dot(ds, qk, part) + tile_dot(p, dyv, part);
        if (part.kind == Block::closed) continue;
        const R w = weight(part);
        accumulate(w, &ds[part.at], w_.k, null_key_, part, &dq[u * b_ * d_]);
        scatter(w, &ds[part.at], q, part, dk, d_null_key);
        scatter(w, &p[part.at], dy_u, part, dv, d_null_value);
      }
    }
    for (R& x : dq) x *= scale();
    store(dq, d.q, s_.length, s_.query_stride());
    store(dk, d.kv, s_.key_length, s_.key_stride());
    store(dv, d.kv + s_.heads * d_, s_.key_length, s_.key_stride());
    for (std::int64_t i = 0; i < choices; ++i) d.weights[first_choice + i] = dw[i];
  }

 private:
  R scale() const { return 1 / std::sqrt(R(d_)); }
  R weight(const Block& block) const { return block.choice < 0 ? R(1) : in_.weights[block.choice]; }

  // The token in a slot of this head, as an index into (B, length).
  std::int64_t token(std::int64_t slot, std::int64_t length) const {
    const std::int64_t rotated = slot + shift_;
    return sequence_ * length + (rotated < length ? rotated : rotated - length);
  }
  bool is_real_query(std::int64_t slot) const { return !in_.mask || in_.mask[token(slot, s_.length)]; }
  bool is_real_key(std::int64_t slot) const { return !in_.key_mask || in_.key_mask[token(slot, s_.key_length)]; }

  // Rows of this head, in the order of slots; in x those of a token, (H, d), lie `stride` elements from the next.
  void load(const T* x, std::int64_t length, std::int64_t stride, Rows& rows) const {
    rows.resize(length * d_);
    for (std::int64_t slot = 0; slot < length; ++slot) {
      const T* from = x + token(slot, length) * stride + head_ * d_;
      std::copy(from, from + d_, &rows[slot * d_]);
    }
  }
  void store(const Rows& rows, T* x, std::int64_t length, std::int64_t stride) const {
    for (std::int64_t slot = 0; slot < length; ++slot)
      std::copy(&rows[slot * d_], &rows[slot * d_] + d_, x + token(slot, length) * stride + head_ * d_);
  }
  // The first choice of a row of routing.
  std::int64_t choice_of(std::int64_t list) const {
    return ((sequence_ * s_.sorting() + sorting_head_) * s_.lists + list) * s_.n_top;
  }

  // The blocks of query bucket u, in the order of their columns.
  void choose(std::int64_t u) {
    blocks_.clear();
    if (is_local_) {
      blocks_.push_back({u > 0 ? Block::keys : Block::closed, (u - 1) * b_, b_, -1});
      blocks_.push_back({Block::own, u * b_, b_, -1});
      const bool is_last = u == s_.buckets() - 1;
      if (!pattern_.causal) blocks_.push_back({is_last ? Block::closed : Block::keys, (u + 1) * b_, b_, -1});
    } else {
      const std::int64_t c = pattern_.key_bucket, first = choice_of(s_.lists == 1 ? 0 : u);
      for (std::int64_t choice = first; choice < first + s_.n_top; ++choice) {
        const std::int64_t pick = in_.picks[choice], source = pick - s_.nulls();
        blocks_.push_back({pick < 0 ? Block::closed : source < 0 ? Block::null : Block::keys, source * c, c, choice});
      }
      if (pattern_.own) blocks_.push_back({Block::own, u * b_, b_, -1});
    }
    std::int64_t at = 0;
    stretches_.clear();
    for (Block& block : blocks_) {
      block.at = at;
      at += block.width;
      if (!stretches_.empty() && follows(stretches_.back(), block))
        stretches_.back().width += block.width;
      else
        stretches_.push_back(block);
    }
  }
  // Whether the keys of both are one matrix, of weight 1.
  static bool follows(const Block& block, const Block& next) {
    const auto is_plain = [](const Block& b) {
      return b.choice < 0 && (b.kind == Block::keys || b.kind == Block::own);
    };
    return is_plain(block) && is_plain(next) && block.begin + block.width == next.begin;
  }

  // tile = rows (bucket, d) times the transposed keys of every block; 0 in closed blocks.
  void products(const R* rows, const Rows& keys, const Rows& null_key, Rows& tile) const {
    for (const Block& block : stretches_) {
      R* columns = &tile[block.at];
      if (block.kind == Block::keys || block.kind == Block::own) {
        cpu::gemm_serial<R>(false, true, b_, block.width, d_, R(1), rows, d_, &keys[block.begin * d_], d_, R(0),
                            columns, columns_);
        continue;
      }
      for (std::int64_t i = 0; i < b_; ++i) {
        const R product = block.kind == Block::null ? row_dot(rows + i * d_, null_key.data()) : R(0);
        std::fill_n(columns + i * columns_, block.width, product);
      }
    }
  }

  // Multiplies each block with its weight and sets to -inf what a query may not see: the causal triangle, padding, and
  // in the last bucket of a rotated head (slots T-1, 0, 1, .., b-2) all that lies in the future of the wrapped slots.
  void weigh_and_close(std::int64_t u, Rows& tile) const {
    constexpr R kClosed = -std::numeric_limits<R>::infinity();
    const bool wraps = shift_ > 0 && u == s_.buckets() - 1;
    for (std::int64_t i = 0; i < b_; ++i) {
      const bool is_padding = !is_real_query(u * b_ + i);
      for (const Block& block : blocks_) {
        R* columns = &tile[i * columns_ + block.at];
        const bool own = block.kind == Block::own, wrapped = wraps && i > 0;
        std::int64_t begin = own && wrapped ? 1 : 0, end = block.width;
        if (own && pattern_.causal) end = i + 1;
        if (!own && wrapped) end = 0;
        if (is_padding || block.kind == Block::closed) begin = end = 0;
        std::fill(columns, columns + begin, kClosed);
        std::fill(columns + end, columns + block.width, kClosed);
        if (const R w = weight(block); w != 1)
          for (std::int64_t j = begin; j < end; ++j) columns[j] *= w;
        if (in_.key_mask && block.kind != Block::null)
          for (std::int64_t j = begin; j < end; ++j)
            if (!is_real_key(block.begin + j)) columns[j] = kClosed;
      }
    }
  }

  // One row of scores becomes probabilities; all closed: zeros. Returns the log-sum-exp, infinite for a closed row.
  R softmax(R* row) const {
    constexpr R kClosed = -std::numeric_limits<R>::infinity();
    const R largest = cpu::row_max(columns_, kClosed, [=](std::int64_t j) { return row[j]; });
    if (largest == kClosed) {
      std::fill_n(row, columns_, R(0));
      return std::numeric_limits<R>::infinity();
    }
    exponentiate(row, largest);
    const R sum = cpu::row_sum<R>(columns_, [=](std::int64_t j) { return row[j]; }), inverse = 1 / sum;
    for (std::int64_t j = 0; j < columns_; ++j) row[j] *= inverse;
    return largest + std::log(sum);
  }
  // row = exp(row - shift), exactly 0 where closed.
  void exponentiate(R* row, R shift) const {
    for (std::int64_t j = 0; j < columns_; ++j)
      row[j] = row[j] == -std::numeric_limits<R>::infinity() ? R(0) : math::exp(row[j] - shift);
  }

  // ds: probabilities on entry, the gradient of the scores on return; p: the probabilities after dropout; dot: <dP, P>.
  // The weight of a block stands between its values and the output, so d(probability) = weight * dy v'.
  void score_gradient(R* ds, const R* p, const R* dyv, R dot) const {
    const R keep_scale = R(1 / (1 - in_.dropout));
    for (const Block& block : stretches_) {
      const R w = weight(block);
      for (std::int64_t j = block.at; j < block.at + block.width; ++j) {
        const R kept = in_.dropout == 0 ? R(1) : p[j] != 0 ? keep_scale : R(0);
        ds[j] *= w * kept * dyv[j] - dot;
      }
    }
  }

  // Zeroes the probabilities that dropout drops and scales up the others.
  void drop(std::int64_t u, Rows& tile) const {
    if (in_.dropout == 0) return;
    const RandomBits& bits = is_local_ ? in_.local_bits : in_.sorting_bits;
    const std::int64_t group =
        is_local_ ? sequence_ * pattern_.local + head_ : sequence_ * s_.sorting() + sorting_head_;
    const std::int64_t first = (group * s_.buckets() + u) * std::int64_t(tile.size());
    const R keep_scale = R(1 / (1 - in_.dropout));
    cpu::for_random_words(
        bits, first, first + tile.size(), [&](std::int64_t i, std::int64_t n, const std::uint32_t* words) {
          R* p = &tile[i - first];
          for (std::int64_t j = 0; j < n; ++j)
            p[j] = p[j] * (RandomBits::to_uniform<double>(words[j]) < in_.dropout ? R(0) : keep_scale);
        });
  }

  // into (bucket, d) += w * columns (bucket, width) times the rows of the block.
  void accumulate(R w, const R* columns, const Rows& rows, const Rows& null_row, const Block& block, R* into) const {
    if (block.kind == Block::closed) return;
    if (block.kind != Block::null)
      return cpu::gemm_serial<R>(false, false, b_, d_, block.width, w, columns, columns_, &rows[block.begin * d_], d_,
                                 R(1), into, d_);
    for (std::int64_t i = 0; i < b_; ++i)
      add_scaled(w * row_sum(columns + i * columns_, block.width), null_row.data(), into + i * d_);
  }
  // The block's rows of `into` += w * columns' (width, bucket) times rows (bucket, d).
  void scatter(R w, const R* columns, const R* rows, const Block& block, Rows& into, R* into_null) const {
    if (block.kind != Block::null)
      return cpu::gemm_serial<R>(true, false, block.width, d_, b_, w, columns, columns_, rows, d_, R(1),
                                 &into[block.begin * d_], d_);
    for (std::int64_t i = 0; i < b_; ++i)
      add_scaled(w * row_sum(columns + i * columns_, block.width), rows + i * d_, into_null);
  }
  R row_sum(const R* row, std::int64_t width) const {
    return cpu::row_sum<R>(width, [=](std::int64_t j) { return row[j]; });
  }
  void add_scaled(R factor, const R* row, R* into) const {
    for (std::int64_t e = 0; e < d_; ++e) into[e] += factor * row[e];
  }
  R row_dot(const R* x, const R* y) const {
    return cpu::row_sum<R>(d_, [=](std::int64_t e) { return x[e] * y[e]; });
  }
  // Sum of the products of two tiles over the columns of a block.
  R tile_dot(const Rows& x, const Rows& y, const Block& block) const {
    R sum = 0;
    for (std::int64_t i = 0; i < b_; ++i) {
      const R *x_i = &x[i * columns_ + block.at], *y_i = &y[i * columns_ + block.at];
      sum += cpu::row_sum<R>(block.width, [=](std::int64_t j) { return x_i[j] * y_i[j]; });
    }
    return sum;
  }

  const Arguments& in_;
  const AttentionShape& s_;
  const AttentionPattern& pattern_;
  const std::int64_t b_, d_, sequence_, head_;
  const bool is_local_;
  const std::int64_t sorting_head_, shift_, columns_;
  Workspace<R>& w_;  // q and its kin are (T, d), k and v (S, d); the tiles (bucket, columns)
  Rows null_key_, null_value_;
  std::vector<Block> blocks_, stretches_;  // stretches_: neighbours whose keys are one matrix count as one block
};

}  // namespace

template <class T>
void BucketedAttention<T>::forward(Cpu, const Arguments& in, const Results& out) {
  const AttentionShape& s = in.shape;
  parallel_for(s.batch * s.heads, 1, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t item = begin; item < end; ++item) Head<T>(in, item / s.heads, item % s.heads).forward(out);
  });
}

template <class T>
void BucketedAttention<T>::backward(Cpu, const Arguments& in, const Results& out, const T* dy, const Flows& d) {
  using R = Real<T>;
  const AttentionShape& s = in.shape;
  // One row per sequence and head, summed over the sequences in their order afterwards.
  std::vector<R> null_keys(s.batch * s.heads * s.width), null_values(null_keys.size());
  parallel_for(s.batch * s.heads, 1, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t item = begin; item < end; ++item)
      Head<T>(in, item / s.heads, item % s.heads)
          .backward(out, dy, d, &null_keys[item * s.width], &null_values[item * s.width]);
  });
  for (std::int64_t i = 0; d.null_keys && i < s.sorting() * s.width; ++i) {
    R key = 0, value = 0;
    for (std::int64_t sequence = 0; sequence < s.batch; ++sequence) {
      key += null_keys[(sequence * s.heads + s.pattern.local) * s.width + i];
      value += null_values[(sequence * s.heads + s.pattern.local) * s.width + i];
    }
    d.null_keys[i] = key;
    d.null_values[i] = value;
  }
}

template struct BucketedAttention<float>;
template struct BucketedAttention<double>;
template struct BucketedAttention<bf16>;

}  // namespace sinkhorn::kernels
