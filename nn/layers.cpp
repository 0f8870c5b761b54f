#include "nn/layers.h"

#include <algorithm>

namespace sinkhorn {

Var AxialPositions::operator()(const Scope& scope, std::int64_t length) const {
  const std::int64_t capacity = rows.value.shape()[1], bucket = columns.value.shape()[2], width = rows.value.shape()[3];
  const std::int64_t needed = (length + bucket - 1) / bucket;
  if (needed > capacity)
    fail("axial positions: length ", length, " exceeds the ", capacity * bucket, " positions of the table");
  const Var outer = slice(reshape(scope.leaf(rows), {capacity, 1, width}), 0, 0, needed);
  const Var inner = reshape(scope.leaf(columns), {1, bucket, width});
  return slice(reshape(add(outer, inner), {needed * bucket, width}), 0, 0, length);
}

Var FeedForward::piece(const Scope& scope, const Var& x) const {
  const Var hidden = w1(scope, x);
  return w2(scope, scope.dropout(gated ? gated_gelu(hidden) : gelu(hidden), dropout));
}

Var FeedForward::operator()(const Scope& scope, const Var& x) const {
  const std::int64_t length = x.shape()[1], pieces_wanted = std::max<std::int64_t>(chunks, 1);
  const std::int64_t step = (length + pieces_wanted - 1) / pieces_wanted;
  if (step >= length) return piece(scope, x);
  std::vector<Var> pieces;
  for (std::int64_t begin = 0; begin < length; begin += step)
    pieces.push_back(
        piece(scope.split(std::uint32_t(pieces.size())), slice(x, 1, begin, std::min(length, begin + step))));
  return concat(pieces, 1);
}

}  // namespace sinkhorn
