// The kernels that the walk-through of this lesson runs and shows.
#pragma once
#include "autograd/maps.h"
#include "cuda/launch.h"

namespace sinkhorn::lessons::lesson_20_cuda_threads {

using cuda::Global;
using cuda::Thread;

// Each thread writes down who it is: block, index in the block, warp, lane.
struct WhoAmI {
  Global<std::int32_t> y;  // (blocks * threads, 4)
  void operator()(Thread& t) const {
    const std::int64_t row = (t.block() * t.size() + t.index()) * 4;
    y[row + 0] = std::int32_t(t.block());
    y[row + 1] = t.index();
    y[row + 2] = t.warp();
    y[row + 3] = t.lane();
  }
};

// y_i = gelu(x_i), one element a thread.
struct Gelu {
  std::int64_t count;
  Global<const float> x;
  Global<float> y;
  void operator()(Thread& t) const {
    const std::int64_t i = t.block() * t.size() + t.index();
    if (i < count) y[i] = maps::Gelu::f<float>(x[i]);
  }
};

struct GeluWithoutGuard {
  Global<const float> x;
  Global<float> y;
  void operator()(Thread& t) const {
    const std::int64_t i = t.block() * t.size() + t.index();
    y[i] = maps::Gelu::f<float>(x[i]);
  }
};

// What thread k of one block works on: k, k + size, k + 2 size, ...
struct Interleaved {
  std::int64_t count;
  Global<const float> x;
  Global<float> y;
  void operator()(Thread& t) const {
    for (std::int64_t i = t.index(); i < count; i += t.size()) y[i] = x[i];
  }
};

// The same copy, each thread with a stretch of its own, as one would cut work on a CPU.
struct Chunked {
  std::int64_t count;
  Global<const float> x;
  Global<float> y;
  void operator()(Thread& t) const {
    const std::int64_t chunk = cuda::pieces(count, t.size()), begin = t.index() * chunk;
    for (std::int64_t i = begin; i < begin + chunk && i < count; ++i) y[i] = x[i];
  }
};

// Thread numbers instead of elements: who writes where.
template <bool interleaved>
struct Owner {
  std::int64_t count;
  Global<float> y;
  void operator()(Thread& t) const {
    const std::int64_t chunk = cuda::pieces(count, t.size());
    const std::int64_t first = interleaved ? t.index() : t.index() * chunk;
    for (std::int64_t k = 0; k < chunk; ++k) {
      const std::int64_t i = first + k * (interleaved ? t.size() : 1);
      if (i < count) y[i] = float(t.index());
    }
  }
};

// Copies a square matrix, one block a row; or one block a column, whose neighbours lie `size` elements apart.
struct CopyRows {
  std::int64_t size;
  Global<const float> x;
  Global<float> y;
  void operator()(Thread& t) const {
    for (std::int64_t c = t.index(); c < size; c += t.size()) y[t.block() * size + c] = x[t.block() * size + c];
  }
};
struct CopyColumns {
  std::int64_t size;
  Global<const float> x;
  Global<float> y;
  void operator()(Thread& t) const {
    for (std::int64_t r = t.index(); r < size; r += t.size()) y[r * size + t.block()] = x[r * size + t.block()];
  }
};
// Reads a row, writes a column.
struct Transpose {
  std::int64_t size;
  Global<const float> x;
  Global<float> y;
  void operator()(Thread& t) const {
    for (std::int64_t c = t.index(); c < size; c += t.size()) y[c * size + t.block()] = x[t.block() * size + c];
  }
};

// Lane k of one warp reads element k * stride.
struct Strided {
  std::int64_t stride;
  Global<const float> x;
  void operator()(Thread& t) const { [[maybe_unused]] const float seen = x[t.index() * stride]; }
};

}  // namespace sinkhorn::lessons::lesson_20_cuda_threads
