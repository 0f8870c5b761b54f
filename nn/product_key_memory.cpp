#include "nn/product_key_memory.h"

#include <cmath>

namespace sinkhorn {

ProductKeyMemory::ProductKeyMemory(const ProductKeyOptions& options, Initializer& init)
    : options(options),
      to_queries(options.dim, 2 * options.heads * options.half, false, init),
      norm(options.half, init),
      keys(init.normal({options.heads, options.keys, 2, options.half}, 1 / std::sqrt(double(options.half)), true)),
      values(options.keys * options.keys, options.dim, 1 / std::sqrt(double(options.dim)), init) {
  values.weight.is_memory = true;
}

// In the parameters' type even under mixed precision: rounded scores would tie, and pick by rounding.
Var ProductKeyMemory::operator()(const Scope& mixed, const Var& input) const {
  const Scope scope = mixed.in_full();
  const Var x = cast(input, keys.value.dtype());
  const ProductKeyOptions& o = options;
  const Shape shape = x.shape();
  const std::int64_t tokens = shape.product(0, shape.rank() - 1);
  const Var queries = norm(scope, reshape(to_queries(scope, x), {tokens, 2, o.heads, o.half}));
  const Var scores = matmul(permute(queries, {1, 2, 0, 3}), permute(scope.leaf(keys), {2, 0, 1, 3}), false,
                            true);  // (2, h, tokens, K)
  const ProductKeys found = product_key_top_k(scores, o.topk, scope.choices ? scope.choices->replayed() : Tensor());
  if (scope.choices) scope.choices->record(found.picks);
  scope.observe("pkm_picks", found.picks);

  // (heads, tokens, k) -> (..., heads k): a token reads for all its heads at once.
  const auto by_token = [&](const Var& of_heads) {
    return reshape(permute(of_heads, {1, 0, 2}), shape.with(-1, o.heads * of_heads.shape()[2]));
  };
  return embedding_bag(scope.leaf(values.weight), by_token(softmax(found.scores)), by_token(found.picks).value);
}

}  // namespace sinkhorn
