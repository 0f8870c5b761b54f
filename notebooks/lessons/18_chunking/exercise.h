// Attention over keys that come in chunks, and the merging of partial results: what the exercise is to write. All
// tensors are f64, except `allowed`, which is bool.
#pragma once
#include <functional>
#include <optional>

#include "autograd/tensor.h"

namespace sinkhorn::lesson {

/// Some of the keys (c, d) and their values (c, e). allowed (b, c): which query may see which key.
struct Chunk {
  Tensor keys, values, allowed;
};

/// Hands out one chunk after the other, each once, then nothing. What a chunk holds is overwritten as soon as the next
/// one is asked for.
using NextChunk = std::function<std::optional<Chunk>()>;

/// What is known of softmax(scores) values after some of the keys, for each of b queries. Scores are <q, k> / sqrt(d).
struct Partial {
  Tensor largest;   // (b): the largest score of an allowed key so far, -inf if there was none
  Tensor sum;       // (b): the sum of exp(score - largest) over them
  Tensor weighted;  // (b, e): the sum of exp(score - largest) times value
};

/// Queries q (b, d) over all chunks. `width` is e. Chunks may differ in length, and there may be none.
Partial attend(const Tensor& q, std::int64_t width, const NextChunk& next);

/// What attending to the keys of both would have given. They may have seen other keys in any order.
Partial merge(const Partial& a, const Partial& b);

/// softmax(scores) values (b, e); 0 in the row of a query that no key was allowed to.
Tensor output(const Partial& partial);

/// log sum exp(scores) (b); -inf where no key was allowed.
Tensor log_sum_exp(const Partial& partial);

}  // namespace sinkhorn::lesson
