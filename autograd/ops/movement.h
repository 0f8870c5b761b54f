// Ops that move elements and compute nothing. Outside of the tape they take any dtype, masks and indices too.
#pragma once
#include "autograd/ops/strided.h"
#include "autograd/tape.h"

namespace sinkhorn {
namespace kernels {

/// Copies `count` blocks of `bytes`; consecutive blocks lie `from_pitch` and `to_pitch` bytes apart.
struct CopyBlocks {
  static void forward(Cpu, std::int64_t count, std::int64_t bytes, const std::byte* from, std::int64_t from_pitch,
                      std::byte* to, std::int64_t to_pitch);
  static void forward(Cuda, std::int64_t count, std::int64_t bytes, const std::byte* from, std::int64_t from_pitch,
                      std::byte* to, std::int64_t to_pitch);
};

/// Adds each of `count` blocks of `size` elements, which lie behind each other, to the elements of `to` from a multiple
/// of `pitch` on.
template <class T>
struct AddBlocks {
  static void forward(Cpu, std::int64_t count, std::int64_t size, const T* from, T* to, std::int64_t pitch);
  static void forward(Cuda, std::int64_t count, std::int64_t size, const T* from, T* to, std::int64_t pitch);
};

/// Writes the elements of x in the order of the loop.
template <class T>
struct Gather {
  static void forward(Cpu, const StridedLoop<1>& loop, const T* x, T* y);
  static void forward(Cuda, const StridedLoop<1>& loop, const T* x, T* y);
};

}  // namespace kernels

namespace ops {

/// y = the elements of x under another shape, sharing its memory.      dx = dy under x's shape
struct Reshape {
  static constexpr std::string_view name = "reshape";
  Output forward(Saved& save, Inputs in) const;
  Tensors backward(const Saved& saved, const Tensor& dy) const;
  static std::vector<Case<Reshape>> cases();
  Shape shape;
};

/// Axis k of y is axis axes[k] of x.      dx = dy permuted back
struct Permute {
  static constexpr std::string_view name = "permute";
  Output forward(Saved& save, Inputs in) const;
  Tensors backward(const Saved& saved, const Tensor& dy) const;
  static std::vector<Case<Permute>> cases();
  std::vector<int> axes;
};

/// y = x, repeated along stretched axes.      dx = dy, summed over them
struct BroadcastTo {
  static constexpr std::string_view name = "broadcast_to";
  Output forward(Saved& save, Inputs in) const;
  Tensors backward(const Saved& saved, const Tensor& dy) const;
  static std::vector<Case<BroadcastTo>> cases();
  Shape shape;
};

/// y = begin .. end-1 of x along an axis.      dx = dy, 0 elsewhere
struct Slice {
  static constexpr std::string_view name = "slice";
  Output forward(Saved& save, Inputs in) const;
  Tensors backward(const Saved& saved, const Tensor& dy) const;
  static std::vector<Case<Slice>> cases();
  int axis;
  std::int64_t begin, end;
};

/// y = x with zeros around it along an axis.      dx = what dy has in x's place
struct Pad {
  static constexpr std::string_view name = "pad";
  Output forward(Saved& save, Inputs in) const;
  Tensors backward(const Saved& saved, const Tensor& dy) const;
  static std::vector<Case<Pad>> cases();
  int axis;
  std::int64_t before, after;
};

/// y = the inputs one after the other along an axis.      dx_k = the part of dy that is x_k's
struct Concat {
  static constexpr std::string_view name = "concat";
  Output forward(Saved& save, Inputs in) const;
  Tensors backward(const Saved& saved, const Tensor& dy) const;
  static std::vector<Case<Concat>> cases();
  int axis;
};

/// y_r = x_{(r + shift) mod T} along an axis.      dx = dy rotated by -shift
struct Rotate {
  static constexpr std::string_view name = "rotate";
  Output forward(Saved& save, Inputs in) const;
  Tensors backward(const Saved& saved, const Tensor& dy) const;
  static std::vector<Case<Rotate>> cases();
  int axis;
  std::int64_t shift;
};

/// y = pieces first, first + n, first + 2 n, ... of x along an axis, where a piece is `width` entries.      dx = dy
/// there, 0 elsewhere
struct EveryNth {
  static constexpr std::string_view name = "every_nth";
  Output forward(Saved& save, Inputs in) const;
  Tensors backward(const Saved& saved, const Tensor& dy) const;
  static std::vector<Case<EveryNth>> cases();
  int axis;
  std::int64_t width, first, n;
};

}  // namespace ops

/// The same elements under another shape, without a copy; one extent may be -1. An Error if the counts differ.
Var reshape(const Var& x, Shape shape);

/// Axis k of the result is axis axes[k] of x: permute(x, {0, 2, 1}) swaps the last two. An Error unless `axes` names
/// each axis of x once.
Var permute(const Var& x, std::vector<int> axes);

/// x stretched to `shape`: aligned at the last axis, extents are equal or x's is 1. An Error naming both shapes if not.
Var broadcast_to(const Var& x, Shape shape);

/// Elements begin .. end-1 along `axis`. An Error if they are not all there.
Var slice(const Var& x, int axis, std::int64_t begin, std::int64_t end);

/// `before` zeros in front and `after` behind along `axis` (false for bool).
Var pad(const Var& x, int axis, std::int64_t before, std::int64_t after);

/// One after the other along `axis`. An Error if there is none, or if another extent or the dtype differs.
Var concat(std::span<const Var> parts, int axis);
Var concat(std::initializer_list<Var> parts, int axis);

/// Rotation to the left: slot r along `axis` holds what stood at (r + shift) mod T. Any shift; -shift undoes it.
Var rotate(const Var& x, int axis, std::int64_t shift);

/// Every n-th piece of `width` entries along `axis`, from piece `first` on: every_nth(x, 0, 1, 1, 2) has the odd rows.
/// An Error unless first is below n, and x made of n pieces or a multiple of that.
Var every_nth(const Var& x, int axis, std::int64_t width, std::int64_t first, std::int64_t n);

/// broadcast_to outside of the tape, for ops.
Tensor stretch(const Tensor& x, const Shape& shape);

}  // namespace sinkhorn
