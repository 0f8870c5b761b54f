#include "nn/layers.h"

#include <algorithm>
#include <tuple>

namespace sinkhorn {

Var beside(const Scope& scope, const Var& x, const Linear& first, const Linear& second, const HeadGroup& group,
           std::int64_t width) {
  const Var weights[] = {group.part(scope.leaf(first.weight), 0, width),
                         group.part(scope.leaf(second.weight), 0, width)};
  const std::array rounded{first.weight.rounded, second.weight.rounded};
  return linear(x, weights, group.is_all() ? Tensor::adjoining(rounded) : Tensor());
}

AxialPositions::AxialPositions(std::int64_t buckets, std::int64_t bucket, std::int64_t width,
                               std::array<std::int64_t, 2> axial_dims, double stddev, Initializer& init)
    : rows(init.normal({1, buckets, 1, axial_dims[0]}, stddev)),
      columns(init.normal({1, 1, bucket, axial_dims[1]}, stddev)),
      concatenated(true) {
  if (axial_dims[0] + axial_dims[1] != width)
    fail("axial positions: the widths ", axial_dims[0], " and ", axial_dims[1], " do not add up to ", width);
}

Var AxialPositions::operator()(const Scope& scope, std::int64_t length) const {
  const std::int64_t capacity = rows.value.shape()[1], bucket = columns.value.shape()[2];
  const std::int64_t row_width = rows.value.shape()[3], column_width = columns.value.shape()[3];
  const std::int64_t needed = (length + bucket - 1) / bucket;
  if (needed > capacity)
    fail("axial positions: length ", length, " exceeds the ", capacity * bucket, " positions of the table");
  const Var outer = slice(reshape(scope.leaf(rows), {capacity, 1, row_width}), 0, 0, needed);
  const Var inner = reshape(scope.leaf(columns), {1, bucket, column_width});
  const Var all = concatenated ? concat({broadcast_to(outer, {needed, bucket, row_width}),
                                         broadcast_to(inner, {needed, bucket, column_width})},
                                        2)
                               : add(outer, inner);
  return slice(reshape(all, {needed * bucket, all.shape()[2]}), 0, 0, length);
}

Var FeedForward::piece(const Scope& scope, const Var& x, const Residual& residual) const {
  Var inside;
  Tensor hidden;
  if (gated) {
    const Var h = w1(scope, x);
    inside = gated_gelu(h);
    hidden = h.value;
  } else {
    std::tie(inside, hidden) = w1.gelu(scope, x);
  }
  inside = scope.dropout(inside, dropout);
  // A reversible chain goes back at once, so that it gains nothing; and on a CPU arithmetic is dearer than memory.
  if (!hidden || residual.undo || x.value.device() == Device::cpu) return w2(scope, inside, residual);
  return w2(scope, inside, residual, [hidden, gated = gated, p = scope.active(dropout), rng = scope.rng] {
    return sinkhorn::dropout(gated ? gated_gelu(hidden) : gelu(hidden), p, rng).value;
  });
}

// A tape keeps the inside of all pieces, so there pieces save nothing; but each draws its own dropout. Without a tape
// there may be more pieces than were asked for.
Var FeedForward::operator()(const Scope& scope, const Var& x, const Residual& residual) const {
  const Shape shape = x.shape();
  const bool draws = scope.active(dropout) > 0;
  const std::int64_t tokens = shape.product(0, shape.rank() - 1), wanted = std::max<std::int64_t>(chunks, 1);
  const std::int64_t least = draws || x.value.device() == Device::cuda ? least_piece : 1;
  const std::int64_t asked = std::max((tokens + wanted - 1) / wanted, least);
  const std::int64_t step = draws ? asked : std::min(asked, kMostAtOnce);
  if (step >= tokens || (scope.tape && !draws)) return piece(scope, x, residual);
  const Var rows = reshape(x, {tokens, shape[-1]}), onto = residual ? reshape(residual.onto, rows.shape()) : Var();
  const bool in_place = residual.in_place && !scope.tape;
  std::vector<Var> pieces;
  for (std::int64_t begin = 0; begin < tokens; begin += step) {
    const std::int64_t end = std::min(tokens, begin + step);
    pieces.push_back(piece(scope.split(std::uint32_t(pieces.size())), slice(rows, 0, begin, end),
                           {onto.value ? slice(onto, 0, begin, end) : Var(), residual.undo, in_place}));
  }
  return in_place ? residual.onto : reshape(concat(pieces, 0), shape);
}

}  // namespace sinkhorn
