// Causal bucket attention of one head in one kernel: what the exercise is to write.
#pragma once
#include "cuda/launch.h"

namespace sinkhorn::lesson {

using cuda::Global;
using cuda::Shared;
using cuda::Thread;

/// Tokens stand in buckets of `bucket`: token u * bucket + i is number i of bucket u. A query of bucket u sees all keys
/// of the buckets picks[u * n_top + c], c < n_top (-1: none), and of its own bucket those up to its own place. With w
/// = weights[u * n_top + c] for picked buckets, and w = 1 in the own one:
///   S_ij = w <q_i, k_j> / sqrt(width),   P = softmax of each row over what it sees,   y_i = sum_j P_ij w v_j
/// Launched with one block a bucket, of kThreads >= bucket threads. Each block reads a bucket of keys and values once
/// for each time that it is picked, each thread a pick and its weight at most once; y and log_sum_exp are written once.
struct BucketAttention {
  static constexpr int kThreads = 64;
  static constexpr std::int64_t kMaxWidth = 32;
  /// What it is launched with: room for three buckets of vectors.
  static std::size_t shared_bytes(std::int64_t bucket, std::int64_t width) {
    return std::size_t(3 * bucket * width) * sizeof(float) + 48;
  }
  std::int64_t bucket, width, n_top;  // width <= kMaxWidth
  Global<const float> q, k, v;        // (tokens, width)
  Global<const std::int32_t> picks;   // (buckets, n_top)
  Global<const float> weights;        // (buckets, n_top)
  Global<float> y;                    // (tokens, width)
  Global<float> log_sum_exp;          // (tokens): log sum_j exp(S_ij)
  void operator()(Thread& t) const;
};

}  // namespace sinkhorn::lesson
