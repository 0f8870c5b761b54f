// Ops that treat every element alike: maps, sums and products with broadcasting, masks, dropout, the gate, casts.
#pragma once
#include "autograd/ops/strided.h"
#include "autograd/tape.h"

namespace sinkhorn {
namespace kernels {

/// `kept` is x or y, as F::keep says.
template <class F, class T>
struct Map {
  static void forward(Cpu, std::int64_t count, const T* x, T* y);
  static void forward(Cuda, std::int64_t count, const T* x, T* y);
  static void backward(Cpu, std::int64_t count, const T* kept, const T* dy, T* dx);
  static void backward(Cuda, std::int64_t count, const T* kept, const T* dy, T* dx);
};

/// y = a x + b
template <class T>
struct Scale {
  static void forward(Cpu, std::int64_t count, const T* x, double a, double b, T* y);
  static void forward(Cuda, std::int64_t count, const T* x, double a, double b, T* y);
  /// y = a[0] x; y may be x.
  static void by(Cpu, std::int64_t count, const T* x, const Real<T>* a, T* y);
  static void by(Cuda, std::int64_t count, const T* x, const Real<T>* a, T* y);
};

/// y = onto + factor x, x rounded to To first; y may be onto
template <class From, class To>
struct AddConverted {
  static void forward(Cpu, std::int64_t count, Real<To> factor, const To* onto, const From* x, To* y);
  static void forward(Cuda, std::int64_t count, Real<To> factor, const To* onto, const From* x, To* y);
};

template <class T>
struct Add {
  static void forward(Cpu, const StridedLoop<2>& loop, const T* a, const T* b, T* y);
  static void forward(Cuda, const StridedLoop<2>& loop, const T* a, const T* b, T* y);
};

template <class T>
struct Mul {
  static void forward(Cpu, const StridedLoop<2>& loop, const T* a, const T* b, T* y);
  static void forward(Cuda, const StridedLoop<2>& loop, const T* a, const T* b, T* y);
};

/// Operand 0 of the loop is x, operand 1 is allowed.
template <class T>
struct MaskFill {
  static void forward(Cpu, const StridedLoop<2>& loop, const T* x, const bool* allowed, double value, T* y);
  static void forward(Cuda, const StridedLoop<2>& loop, const T* x, const bool* allowed, double value, T* y);
};

/// Element i is kept if its 23 random bits are at least `threshold`; see dropout_threshold. Backward is forward.
template <class T>
struct Dropout {
  static void forward(Cpu, std::int64_t count, RandomBits bits, std::uint32_t threshold, double scale, const T* x,
                      T* y);
  static void forward(Cuda, std::int64_t count, RandomBits bits, std::uint32_t threshold, double scale, const T* x,
                      T* y);
};

/// x and dx are (rows, 2 width), y and dy (rows, width).
template <class T>
struct GatedGelu {
  static void forward(Cpu, std::int64_t rows, std::int64_t width, const T* x, T* y);
  static void forward(Cuda, std::int64_t rows, std::int64_t width, const T* x, T* y);
  static void backward(Cpu, std::int64_t rows, std::int64_t width, const T* x, const T* dy, T* dx);
  static void backward(Cuda, std::int64_t rows, std::int64_t width, const T* x, const T* dy, T* dx);
};

}  // namespace kernels

namespace ops {

/// y = F::f(x) for one of `maps::All`.      dx = F::df(x or y) * dy
template <class F>
struct Map {
  static constexpr std::string_view name = F::name;
  Output forward(Saved& save, Inputs in) const;
  Tensors backward(const Saved& saved, const Tensor& dy) const;
  static std::vector<Case<Map>> cases();
};

/// y = a x + b      dx = a dy
struct Scale {
  static constexpr std::string_view name = "scale";
  Output forward(Saved& save, Inputs in) const;
  Tensors backward(const Saved& saved, const Tensor& dy) const;
  static std::vector<Case<Scale>> cases();
  double a, b;
};

/// y = a + b, stretched to one shape.      da, db = dy, summed over the axes along which each was stretched
struct Add {
  static constexpr std::string_view name = "add";
  Output forward(Saved& save, Inputs in) const;
  Tensors backward(const Saved& saved, const Tensor& dy) const;
  static std::vector<Case<Add>> cases();
};

/// y = a * b, stretched to one shape.      da = dy * b and db = dy * a, summed likewise
struct Mul {
  static constexpr std::string_view name = "mul";
  Output forward(Saved& save, Inputs in) const;
  Tensors backward(const Saved& saved, const Tensor& dy) const;
  static std::vector<Case<Mul>> cases();
};

/// y = allowed ? x : value, with inputs x and allowed.      dx = allowed ? dy : 0
struct MaskFill {
  static constexpr std::string_view name = "mask_fill";
  Output forward(Saved& save, Inputs in) const;
  Tensors backward(const Saved& saved, const Tensor& dy) const;
  static std::vector<Case<MaskFill>> cases();
  double value;
};

/// y_i = x_i / (1 - p) where u_i >= p, else 0.      dx likewise from dy, with the u_i drawn again
struct Dropout {
  static constexpr std::string_view name = "dropout";
  Output forward(Saved& save, Inputs in) const;
  Tensors backward(const Saved& saved, const Tensor& dy) const;
  static std::vector<Case<Dropout>> cases();
  double p;
  Rng rng;
};

/// y = gelu(a) g for x = [a, g].      da = dy g gelu'(a), dg = dy gelu(a)
struct GatedGelu {
  static constexpr std::string_view name = "gated_gelu";
  Output forward(Saved& save, Inputs in) const;
  Tensors backward(const Saved& saved, const Tensor& dy) const;
  static std::vector<Case<GatedGelu>> cases();
};

/// y = x rounded to `to`, which is `copy`, if somebody has it; or with a second input r, a residual of that type: r +
/// x, r - x if `undo`, in r's place if `in_place` (autograd/residual.h).      dx = dy rounded to `from`, dr = dy
struct Cast {
  static constexpr std::string_view name = "cast";
  Output forward(Saved& save, Inputs in) const;
  Tensors backward(const Saved& saved, const Tensor& dy) const;
  static std::vector<Case<Cast>> cases();
  DType from, to;
  Tensor copy = {};
  bool undo = false, in_place = false;
};

}  // namespace ops

/// Element by element; any shape.
Var exp(const Var& x);
Var log(const Var& x);
Var sqrt(const Var& x);
Var square(const Var& x);
Var reciprocal(const Var& x);
Var abs(const Var& x);
Var tanh(const Var& x);
Var sigmoid(const Var& x);
Var relu(const Var& x);
/// x if positive, else 0.01 x.
Var leaky_relu(const Var& x);
/// x P(N(0,1) <= x), the exact form with erf.
Var gelu(const Var& x);

/// a x + b for two numbers.
Var scale(const Var& x, double a, double b = 0);
Var neg(const Var& x);

/// Sum, difference, product and quotient of tensors of one dtype, stretched to one shape: aligned at the last axis,
/// extents are equal or one of them is 1. An Error naming both shapes if they are not.
Var add(const Var& a, const Var& b);
Var sub(const Var& a, const Var& b);
Var mul(const Var& a, const Var& b);
Var div(const Var& a, const Var& b);

inline Var operator+(const Var& a, const Var& b) { return add(a, b); }
inline Var operator-(const Var& a, const Var& b) { return sub(a, b); }
inline Var operator*(const Var& a, const Var& b) { return mul(a, b); }
inline Var operator/(const Var& a, const Var& b) { return div(a, b); }
inline Var operator-(const Var& x) { return neg(x); }
inline Var operator*(double a, const Var& x) { return scale(x, a); }

/// x where `allowed` (bool, of a shape that stretches to x's), `value` elsewhere, whatever x holds there.
Var mask_fill(const Var& x, const Tensor& allowed, double value);

/// Sets each element to 0 with probability p in [0, 1) and divides the others by 1 - p (Srivastava et al. 2014).
/// Element i is kept if rng.bits().uniform(i) >= p; no mask is stored, backward draws the bits again. p = 0 returns x.
Var dropout(const Var& x, double p, const Rng& rng);
/// What `dropout` keeps of an x of this shape, as bool on the CPU: for tests and for those who look on.
Tensor dropout_mask(const Rng& rng, Shape shape, double p);

/// gelu(a) * g for x (..., 2 w) = [a, g] along the last axis; gives (..., w). An Error if the last extent is odd.
Var gated_gelu(const Var& x);

/// x in another floating type, rounded to nearest; x itself if it has that type already. `copy`: that result, if it is
/// there. An Error if the copy's shape or type is another.
Var cast(const Var& x, DType dtype, const Tensor& copy = {});

}  // namespace sinkhorn
