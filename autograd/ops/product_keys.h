// Product keys: the best of all sums of two scores, found without forming them all.
#pragma once
#include "autograd/tape.h"

namespace sinkhorn {
namespace kernels {

/// scores (2, rows, keys); n <= keys sums are picked per row.
struct KeyHalves {
  std::int64_t rows, keys, n;
};

template <class T>
struct ProductKeyTopK {
  /// sums and picks (rows, n). `fixed`, if not null, holds the picks to use.
  static void forward(Cpu, const KeyHalves& halves, const T* scores, const std::int32_t* fixed, T* sums,
                      std::int32_t* picks);
  static void backward(Cpu, const KeyHalves& halves, const std::int32_t* picks, const T* dsums, T* dscores);
};

}  // namespace kernels

namespace ops {

/// sums[r, k] = scores[0, r, i] + scores[1, r, j] at the pick i * keys + j. The second input may hold the picks.
///   dscores[0, r, i] += dsum, dscores[1, r, j] += dsum for each pick
struct ProductKeyTopK {
  static constexpr std::string_view name = "product_key_top_k";
  Output forward(Saved& save, Inputs in) const;
  Tensors backward(const Saved& saved, const Tensor& dy) const;
  static std::vector<Case<ProductKeyTopK>> cases();

  std::int64_t n = 1;
};

}  // namespace ops

/// The slots that were found: their scores (..., n), and which they are, i32 of that shape.
struct ProductKeys {
  Var scores;
  Tensor picks;
};

/// The n largest of the keys^2 sums scores[0, ..., i] + scores[1, ..., j], largest first, for scores (2, ..., keys);
/// slot i * keys + j. Sums are compared as computed, in f32 or better, and of equal ones the lowest slot wins, so that
/// the picks are those of a search through all of them. n is clamped to `keys`. `picks` replays a choice instead of
/// searching. An Error if n < 1, if slots do not fit into i32, or if a given pick is no slot.
/// Source: Lample et al. 2019, "Large Memory Layers with Product Keys", section 3.2.
ProductKeys product_key_top_k(const Var& scores, std::int64_t n, const Tensor& picks = {});

}  // namespace sinkhorn
