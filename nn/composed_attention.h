// Attention composed from small ops, as the lessons show it: bucket, sort, matmul, softmax, matmul.
#pragma once
#include "nn/module.h"

namespace sinkhorn {

/// bucketed_attention() said step by step: equal to it up to rounding, with dropout too. Holds all scores at once:
/// (B, h, N, b, n c + b).
Var composed_attention(const Var& q, const Var& kv, const Routing& routing, const NullBlock& null,
                       const AttentionPattern& pattern, const AttentionMasks& masks = {},
                       const AttentionDropout& dropout = {});

/// Attention of a non-causal layer whose sorting heads see blends of key buckets: row u of `matrix` (B, h, rows, M)
/// holds the share of each key bucket in sorted bucket u (behaviour 2.6). With `shared` all query buckets see all rows
/// (SortCut), else bucket u sees row u. Padded keys and values count as 0 in a blend; a blended slot is seen if at
/// least half of its mass is real. Otherwise as bucketed_attention().
Var blended_attention(const Var& q, const Var& kv, const Var& matrix, bool shared, const AttentionPattern& pattern,
                      const AttentionMasks& masks = {}, const AttentionDropout& dropout = {});

}  // namespace sinkhorn
