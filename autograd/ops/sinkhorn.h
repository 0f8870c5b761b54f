// Sinkhorn normalisation in the log domain: rows and columns in turn, differentiable through every iteration.
#pragma once
#include "autograd/tape.h"

namespace sinkhorn {
namespace kernels {

/// A tensor seen as `count` matrices of its last two axes.
struct Matrices {
  explicit Matrices(const Shape& shape)
      : rows(shape[-2]), columns(shape[-1]), count(shape.product(0, shape.rank() - 2)) {}
  std::int64_t size() const { return rows * columns; }
  std::int64_t rows, columns, count;
};

template <class T>
struct Sinkhorn {
  /// `open` (count, columns) or null. `potentials` (count, iterations, rows + columns) receives f and g of each
  /// iteration.
  static void forward(Cpu, const Matrices& shape, std::int64_t iterations, const T* x, const bool* open, T* y,
                      Real<T>* potentials);
  static void backward(Cpu, const Matrices& shape, std::int64_t iterations, const T* x, const bool* open,
                       const Real<T>* potentials, const T* dy, T* dx);
};

}  // namespace kernels

namespace ops {

/// y = exp(x - f - g) after `iterations` times
///   f_i = log sum_j exp(x_ij - g_j),  g_j = log sum_i exp(x_ij - f_i),  g = 0 at first,
/// over the columns that the optional second input opens (bool, of a shape that stretches to x's without its rows).
///   dx_ij = y_ij (dy_ij - c_j),  c_j = sum_i y_ij dy_ij,  df_i = -sum_j dx_ij;  then back through the iterations:
///   dx_ij += s_ij df_i,  dg_j = -sum_i s_ij df_i,  s = exp(x - f - g), f and g as they stood after the rows,
///   dx_ij += p_ij dg_j,  df_i = -sum_j p_ij dg_j,  p likewise after the columns before.
struct Sinkhorn {
  static constexpr std::string_view name = "sinkhorn";
  Output forward(Saved& save, Inputs in) const;
  Tensors backward(const Saved& saved, const Tensor& dy) const;
  static std::vector<Case<Sinkhorn>> cases();

  std::int64_t iterations = 1;
};

}  // namespace ops

/// log_scores (..., N, M) -> exp(Z) of that shape, where Z = log_scores and `iterations` times, at least once: from
/// each row of Z its log-sum-exp is subtracted, then from each column its own. Columns sum to 1 to rounding; rows only
/// approach M / N.
/// `columns` (bool, of a shape that stretches to (..., M)) says which columns exist: the others are 0, take no part in
/// any sum whatever they hold, and get zero gradient. Where none exists all is 0. An entry of -inf stays 0, and so does
/// a row or column that has no other. Computed in f32 or better.
/// Source: Sinkhorn 1964; Mena et al. 2018, "Learning Latent Permutations with Gumbel-Sinkhorn Networks", section 2.
Var sinkhorn(const Var& log_scores, const Tensor& columns, std::int64_t iterations);

/// The same with every column open, said step by step with other ops: slower, and every Z stays on the tape.
Var composed_sinkhorn(const Var& log_scores, std::int64_t iterations);

}  // namespace sinkhorn
