// Wrong: each thread takes a stretch of its own: right values, and sectors wasted.
#include "notebooks/lessons/20_cuda_threads/exercise.h"

namespace sinkhorn::lesson {

void ScaleAndAdd::operator()(Thread& t) const {
  const std::int64_t chunk = cuda::pieces(count, blocks * t.size());
  const std::int64_t begin = (t.block() * t.size() + t.index()) * chunk;
  for (std::int64_t i = begin; i < begin + chunk && i < count; ++i) y[i] = a * x[i] + b;
}

void GatherRows::operator()(Thread& t) const {
  const std::int32_t pick = picks[t.block()];
  const std::int64_t to = t.block() * width, from = pick * width;
  for (std::int64_t c = t.index(); c < width; c += t.size()) y[to + c] = pick < 0 ? 0.0f : x[from + c];
}

}  // namespace sinkhorn::lesson
