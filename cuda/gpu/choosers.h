// Who looks at a key bucket: the buckets of queries that see it anyway, and those that chose it, from a list of the
// picks sorted by bucket; and how such lists are made and cut.
#pragma once
#include <algorithm>

#include "cuda/gpu/attention_masks.h"
#include "cuda/runtime.h"
#include "cuda/sorted.h"

namespace sinkhorn::cuda {

/// The places of the routing, (B, h, lists, n) flat, head by head sorted by the key bucket they chose. Keys are buckets
/// of heads, h (M + 1) + bucket of M; the last of a head, of no bucket, is what chose a null or nothing.
struct Choosers {
  Global<const std::int32_t> begin;   // (B, h, M + 1): where in the list a key begins; the next is its end
  Global<const std::int32_t> sorted;  // key by position
  Global<const std::int64_t> places;  // place by position

  /// Lists are cut into pieces of this many visits, so that no block of threads has more: a position is a visit, or as
  /// many as there are query buckets where one list serves all.
  std::int64_t piece;
};

/// Which key a place chose.
struct KeyOfPlace {
  std::int64_t per_head;  // lists * n
  std::int32_t key_buckets, nulls;
  Global<const std::int32_t> picks;

  __device__ std::int32_t bucket(std::int64_t i) const {
    const std::int32_t pick = picks[i], source = pick - nulls;
    return pick >= 0 && source >= 0 && source < key_buckets ? source : key_buckets;
  }
  __device__ std::int32_t operator()(std::int64_t i) const {
    return std::int32_t(quotient(i, per_head)) * (key_buckets + 1) + bucket(i);
  }
};

/// The lists of short heads, one block of threads for each: every thread looks through all places for those of its
/// keys.
struct ListChoosers {
  KeyOfPlace key_of;
  Global<std::int32_t> begin, sorted;
  Global<std::int64_t> places;

  static constexpr std::int64_t kMost = 1 << 13;  // places, and comparisons of one thread
  static bool takes(std::int64_t per_head, std::int64_t key_buckets) {
    return per_head * pieces(key_buckets + 1, kMaxThreads) <= kMost;
  }
  __device__ void operator()(Thread& t) const {
    const int count = int(key_of.per_head);
    const std::int64_t first = t.block() * count;
    const std::int32_t first_key = std::int32_t(t.block()) * (key_of.key_buckets + 1);
    const Shared<std::int32_t> bucket = t.shared<std::int32_t>(count);
    for (int i = t.index(); i < count; i += t.size()) bucket[i] = key_of.bucket(first + i);
    t.sync();
    for (int key = t.index(); key <= key_of.key_buckets; key += t.size()) {
      std::int64_t at = first;
      for (int i = 0; i < count; ++i) at += bucket[i] < key;
      begin[first_key + key] = std::int32_t(at);
      for (int i = 0; i < count; ++i)
        if (bucket[i] == key) {
          sorted[at] = first_key + key;
          places[at++] = first + i;
        }
    }
  }
};

/// Of longer ones, which are sorted first.
struct KeysOfPlaces {
  KeyOfPlace key_of;
  Global<std::int32_t> y;
  __device__ void operator()(std::int64_t i) const { y[i] = key_of(i); }
};

/// The lists of a layer, and the memory they lie in.
class ChooserLists {
 public:
  ChooserLists(std::string_view op, const AttentionShape& s, const std::int32_t* picks)
      : count_(s.batch * s.sorting() * s.lists * s.n_top),
        begin_(workspace({s.batch * s.sorting() * (s.key_buckets() + 1)}, DType::i32)),
        sorted_(workspace({count_}, DType::i32)),
        places_(workspace({count_}, DType::f64)),  // i64, 8 bytes each
        visits_(count_ * (s.lists == 1 ? s.buckets() : 1)),
        piece_(std::max(pieces(visits_, kMostPieces), std::clamp<std::int64_t>(pieces(visits_, 128), 2, kFewVisits))) {
    const KeyOfPlace key_of{s.lists * s.n_top, std::int32_t(s.key_buckets()), std::int32_t(s.nulls()), picks};
    auto *const begin = begin_.data<std::int32_t>(), *const sorted = sorted_.data<std::int32_t>();
    if (ListChoosers::takes(key_of.per_head, s.key_buckets())) {
      const std::int64_t whole = pieces(key_of.per_head, 4) * 4;  // the compiler reads packs of four
      launch(op, s.batch * s.sorting(), kMaxThreads, std::size_t(whole) * sizeof(std::int32_t),
             ListChoosers{key_of, begin, sorted, places()});
      return;
    }
    const Tensor keys = workspace({count_}, DType::i32);
    for_each(op, count_, KeysOfPlaces{key_of, keys.data<std::int32_t>()});
    sort_positions(count_, std::int32_t(begin_.count()), keys.data<std::int32_t>(), sorted, places());
    for_each(op, begin_.count(), BeginOfKey<std::int32_t>{count_, sorted, begin});
  }

  Choosers choosers() const { return {begin_.data<std::int32_t>(), sorted_.data<std::int32_t>(), places(), piece_}; }
  /// How many pieces there can be behind the first ones of all keys.
  std::int64_t later_pieces() const { return pieces(visits_, piece_); }

 private:
  // A long list is cut where it would keep one block of threads at work when the others are done: after 8 visits, or
  // fewer where all visits would not fill the GPU that way, or a 512th of all of them. More pieces would cost memory
  // for their sums.
  static constexpr std::int64_t kFewVisits = 8, kMostPieces = 512;
  std::int64_t* places() const { return reinterpret_cast<std::int64_t*>(places_.data<double>()); }
  std::int64_t count_;
  Tensor begin_, sorted_, places_;
  std::int64_t visits_, piece_;
};

/// One piece of the list of a key, of which `begin` .. end - 1 are all visits: number `index`, which begins at `from`.
///
/// Piece 0 of every key has its own block of threads. Those behind it are named by a number n from 1, which stands for
/// the one piece, if there is one, that begins among the visits n L .. n L + L - 1, where L is the length of a piece:
/// pieces of one key begin L apart, and between the beginnings of two keys' later pieces lie more. The key of such a
/// piece is the one that visit n L - 1 belongs to.
struct ChooserPiece {
  std::int32_t key = 0;
  std::int64_t begin = 0, end = 0, from = 0, index = 0;

  __device__ std::int64_t to(std::int64_t length) const { return min(from + length, end); }
  __device__ bool is_there() const { return from < end; }
  /// The number of a later piece of the same key.
  __device__ std::int64_t number(std::int64_t index, std::int64_t length) const {
    return (begin + index * length) / length;
  }

  __device__ static ChooserPiece first(const Choosers& list, std::int64_t repeats, std::int32_t key) {
    const std::int64_t begin = list.begin[key] * repeats, end = list.begin[key + 1] * repeats;
    return {key, begin, end, begin, 0};
  }
  /// Of number n; not there if there is none.
  __device__ static ChooserPiece later(const Choosers& list, std::int64_t repeats, std::int32_t key_buckets,
                                       std::int64_t n) {
    if (n == 0) return {};
    const std::int64_t least = n * list.piece;
    const std::int32_t key = list.sorted[(least - 1) / repeats];
    if (key % (key_buckets + 1) == key_buckets) return {};
    ChooserPiece piece = first(list, repeats, key);
    piece.index = (least - piece.begin + list.piece - 1) / list.piece;
    piece.from = piece.begin + piece.index * list.piece;
    return piece;
  }
};

/// The query buckets that look at key slots s0 .. s0 + rows - 1, and through which of their blocks: with piece 0 own
/// and neighbours' first, then those of the piece, in order.
template <class T>
struct Visits {
  const TileHead<T>& head;
  const Choosers& list;
  int bucket, window, last_window, way = -1;  // window: bucket of queries whose own keys are among the slots
  std::int64_t at, end;                       // visits
  int u = 0;
  KeyBlock block = {};

  __device__ Visits(const TileHead<T>& head, int s0, int rows, const Choosers& list, const ChooserPiece& piece)
      : head(head),
        list(list),
        bucket(s0 / head.in.key_bucket),
        window(s0 / head.in.bucket),
        last_window(piece.index == 0 && (head.is_local || head.in.own) ? (s0 + rows - 1) / head.in.bucket : window - 1),
        at(piece.from),
        end(piece.to(list.piece)) {}
  /// To the next visit; false where there is none.
  __device__ bool next() {
    const TileInputs<T>& in = head.in;
    const int ways = head.is_local ? (in.causal ? 2 : 3) : 1;
    while (window <= last_window) {
      if (++way == ways) {
        way = -1;
        ++window;
        continue;
      }
      const int c = way == 0 ? 1 : way == 1 ? 0 : 2;  // own, the bucket behind it, the one before it
      u = head.is_local ? window + 1 - c : window;
      if (u < 0 || u >= in.buckets) continue;
      block = {head.is_local ? c : in.n_top, way == 0 ? AttentionBlock::own : AttentionBlock::keys, window * in.bucket,
               in.bucket, 1};
      return true;
    }
    if (at >= end) return false;
    const std::int64_t position = in.lists == 1 ? at / in.buckets : at, choice = list.places[position];
    const auto local = std::uint32_t(choice - std::int64_t(head.group()) * in.lists * in.n_top);
    u = in.lists == 1 ? int(at - position * in.buckets) : int(local / std::uint32_t(in.n_top));
    block = {int(local % std::uint32_t(in.n_top)), AttentionBlock::keys, bucket * in.key_bucket, in.key_bucket,
             in.weights[choice]};
    ++at;
    return true;
  }
};

}  // namespace sinkhorn::cuda
