// Who sees whom in attention that is composed of other ops, as masks. Each rule tells of one element of a row-major
// bool tensor, for host and device alike; `Flags` is how masks are read (const bool*, or a kernel's Global).
#pragma once
#include "autograd/dispatch.h"

namespace sinkhorn {

/// Windows of local heads: allowed (G, N, b, J), where J is the window before, the query's own and, unless causal, the
/// one after. `local` groups share a row of the masks (B, T).
struct WindowRule {
  std::int64_t local, length, bucket;
  bool causal;

  SINKHORN_HD std::int64_t seen() const { return (causal ? 2 : 3) * bucket; }
  template <class Flags>
  SINKHORN_HD bool operator()(std::int64_t at, const Flags& query_is_real, const Flags& key_is_real) const {
    const std::int64_t j = at % seen(), i = at / seen() % bucket, u = at / seen() / bucket % (length / bucket);
    const std::int64_t row = at / (seen() * length) / local * length;
    const std::int64_t query = u * bucket + i, key = (u - 1) * bucket + j;
    return key >= 0 && key < length && (!causal || key <= query) && query_is_real[row + query] &&
           key_is_real[row + key];
  }
};

/// Slots of chosen blocks: seen (G, lists, n * c), by picks (G, lists, n) and the mask (G, S) of keys. A pick below
/// `nulls` is a null block, below 0 nothing.
struct ChosenRule {
  std::int64_t picks_of_group, bucket, nulls, key_length;

  template <class Flags, class Picks>
  SINKHORN_HD bool operator()(std::int64_t at, const Picks& picks, const Flags& key_is_real) const {
    const std::int64_t pick = picks[at / bucket], group = at / bucket / picks_of_group;
    return pick >= 0 && (pick < nulls || key_is_real[group * key_length + (pick - nulls) * bucket + at % bucket]);
  }
};

/// Slots of blended blocks: seen (G, rows, c), by the shares (G, rows, sources): at least half of what is blended there
/// must be real.
struct BlendedRule {
  std::int64_t rows, sources, bucket;

  template <class Flags, class Shares>
  SINKHORN_HD bool operator()(std::int64_t at, const Shares& shares, const Flags& key_is_real) const {
    const std::int64_t row = at / bucket, keys = row / rows * sources * bucket + at % bucket;
    double mass = 0, real_mass = 0;
    for (std::int64_t source = 0; source < sources; ++source) {
      const double share = double(shares[row * sources + source]);
      mass += share;
      if (key_is_real[keys + source * bucket]) real_mass += share;
    }
    return mass > 0 && real_mass >= 0.5 * mass;
  }
};

/// What sorting heads see: allowed (G, N, b, slots + own), the `slots` of their list and then, if `own`, their bucket.
/// One of `heads` groups of a sequence is a head; causal layers rotate the second half of them.
struct SortedRule {
  std::int64_t heads, length, key_length, bucket, lists, slots;
  bool causal, own;

  SINKHORN_HD std::int64_t width() const { return slots + (own ? bucket : 0); }
  /// `seen` (G, lists, slots), the masks (G, T) and (G, S).
  template <class Flags>
  SINKHORN_HD bool operator()(std::int64_t at, const Flags& seen, const Flags& query_is_real,
                              const Flags& key_is_real) const {
    const std::int64_t j = at % width(), i = at / width() % bucket, u = at / width() / bucket % (length / bucket);
    const std::int64_t group = at / (width() * length);
    if (!query_is_real[group * length + u * bucket + i]) return false;
    // Slots 1 .. b-1 of a rotated head's last bucket hold the tokens 0 .. b-2.
    const bool is_rotated = causal && group % heads >= heads / 2;
    const bool wrapped = is_rotated && u == length / bucket - 1 && i > 0;
    if (j < slots) return !wrapped && seen[(group * lists + (lists == 1 ? 0 : u)) * slots + j];
    const std::int64_t behind = j - slots;
    const bool visible = !causal || (behind <= i && !(wrapped && behind == 0));
    return visible && key_is_real[group * key_length + u * bucket + behind];
  }
};

namespace kernels {

/// y_i = rule(i, ...)
struct Visible {
  static void windows(Cpu, std::int64_t count, const WindowRule& rule, const bool* queries, const bool* keys, bool* y);
  static void windows(Cuda, std::int64_t count, const WindowRule& rule, const bool* queries, const bool* keys, bool* y);
  static void chosen(Cpu, std::int64_t count, const ChosenRule& rule, const std::int32_t* picks, const bool* keys,
                     bool* y);
  static void chosen(Cuda, std::int64_t count, const ChosenRule& rule, const std::int32_t* picks, const bool* keys,
                     bool* y);
  static void sorted(Cpu, std::int64_t count, const SortedRule& rule, const bool* seen, const bool* queries,
                     const bool* keys, bool* y);
  static void sorted(Cuda, std::int64_t count, const SortedRule& rule, const bool* seen, const bool* queries,
                     const bool* keys, bool* y);
};

template <class T>
struct VisibleBlends {
  static void forward(Cpu, std::int64_t count, const BlendedRule& rule, const T* shares, const bool* keys, bool* y);
  static void forward(Cuda, std::int64_t count, const BlendedRule& rule, const T* shares, const bool* keys, bool* y);
};

}  // namespace kernels
}  // namespace sinkhorn
