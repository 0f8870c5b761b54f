#include "tools/flops.h"

#include <algorithm>

#include "tools/sequence_model.h"

namespace sinkhorn {
namespace {

/// One attention layer: queries of `length` tokens, keys of `key_length`.
struct Attention {
  const ModelConfig& c;
  bool cross;
  double batch, length, key_length;

  double key_bucket() const { return double(cross ? c.context_bucket() : c.key_bucket()); }
  double sortcut() const { return double(cross ? c.context_n_sortcut : c.n_sortcut); }
  double local() const { return cross ? 0 : double(c.n_local_attn_heads); }
  double sorting() const { return double(c.heads) - local(); }
  double width() const { return double(c.head_width()); }
  double buckets() const { return length / double(c.bucket_size); }
  double key_buckets() const { return key_length / key_bucket(); }
  bool is_causal() const { return c.causal && !cross; }
  bool is_simple() const { return c.use_simple_sort_net && !cross; }
  /// By rows of a sorting matrix, not by picks (nn/attention.cpp).
  bool blends() const { return !c.causal && !c.non_permutative && sorting() > 0; }

  double projections() const {
    const double inner = double(c.heads) * width(), dim = double(c.dim);
    const double of_keys = cross && !c.context_kv_projection ? 0 : batch * key_length * dim * 2 * inner;
    return 2 * batch * length * dim * inner + of_keys;
  }
  /// Rows of the sorting matrix that are used.
  double blended_rows() const { return sortcut() > 0 ? std::min({sortcut(), key_buckets(), buckets()}) : buckets(); }
  /// Sorted slots that a query of a sorting head sees beside its own bucket.
  double sorted_slots() const {
    const double n_top = double(c.n_top_buckets), most = std::max(key_buckets(), 1.0);
    if (is_causal()) return n_top * key_bucket();  // nulls stand in for what is missing
    if (blends()) return (sortcut() > 0 ? blended_rows() : 1) * key_bucket();
    if (sortcut() == 0) return std::min(n_top, most) * key_bucket();
    const double shared = std::min(sortcut(), most);
    return (is_simple() ? std::min(shared, buckets() * std::min(n_top, most)) : shared) * key_bucket();
  }
  /// Queries times keys; as many follow with values.
  double scores() const {
    const double bucket = double(c.bucket_size), windows = is_causal() ? 2 : 3;
    const double of_local = local() * windows * bucket;
    const double of_sorting = sorting() * (sorted_slots() + (cross ? 0 : bucket));
    return batch * length * width() * (of_local + of_sorting);
  }
  double sort_net() const {
    const double heads = batch * sorting();
    if (is_simple()) {
      const double columns = key_buckets() + (is_causal() ? double(c.n_top_buckets) : 0);
      return heads * buckets() * columns * 2 * width();
    }
    const bool one_row = sortcut() > 0 && !blends() && !is_causal();  // SortCut picks once, for the whole sequence
    return heads * (one_row ? 1 : buckets()) * key_buckets() * width();
  }
  double blending() const {
    return blends() ? 2 * batch * sorting() * blended_rows() * key_buckets() * key_bucket() * width() : 0;
  }
  double total() const { return projections() + 2 * scores() + sort_net() + blending(); }
  /// Only the fused op forgets its scores.
  double forgotten_scores() const { return blends() ? 0 : scores(); }
};

/// On one token.
double feed_forward(const ModelConfig& c) {
  const double dim = double(c.dim);
  return (c.ff_glu ? 12 : 8) * dim * dim;
}
double memory(const ModelConfig& c) {
  const double halves = 2 * double(c.pkm_heads) * double(c.pkm_dim_head);
  return halves * (double(c.dim) + double(c.pkm_num_keys));
}
double outside(const ModelConfig& c) {
  const double dim = double(c.dim), width = double(c.embedding_width()), ways = c.return_embeddings ? 1 : 2;
  return (width != dim ? ways * width * dim : 0) + (c.return_embeddings ? 0 : width * double(c.num_tokens));
}

StepFlops training_flops(const ModelConfig& config, const ForwardProducts& forward) {
  const double needed = 3 * forward.total();
  return {2 * needed, 2 * (needed + (config.reversible ? forward.layers : 0) + forward.scores)};
}

}  // namespace

ForwardProducts forward_products(const ModelConfig& c, double batch, double length, double context_length) {
  const Attention self{c, false, batch, length, length}, cross{c, true, batch, length, context_length};
  const double tokens = batch * length, kept = 1 - c.layer_dropout;
  ForwardProducts products;
  for (std::int64_t layer = 0; layer < c.depth; ++layer) {
    products.layers += kept * (self.total() + tokens * (c.has_pkm(layer) ? memory(c) : feed_forward(c)));
    products.scores += kept * self.forgotten_scores();
    if (!c.receives_context) continue;
    products.layers += kept * (cross.total() + tokens * feed_forward(c));
    products.scores += kept * cross.forgotten_scores();
  }
  products.outside = c.num_tokens > 0 ? tokens * outside(c) : 0;
  return products;
}

std::int64_t padded_length(const ModelConfig& config, std::int64_t length) {
  if (const auto fixed = config.fixed_length()) return *fixed;
  const std::int64_t multiple = config.length_multiple();
  return (length + multiple - 1) / multiple * multiple;
}

StepFlops training_flops(const ModelConfig& config, double batch, std::int64_t length, std::int64_t source_length) {
  if (source_length == 0)
    return training_flops(config, forward_products(config, batch, double(padded_length(config, length))));
  const auto [encoder, decoder] = encoder_and_decoder(config);
  const std::int64_t bucket = decoder.context_bucket();
  const std::int64_t context = (source_length + bucket - 1) / bucket * bucket;
  const StepFlops reading =
      training_flops(encoder, forward_products(encoder, batch, double(padded_length(encoder, source_length))));
  const StepFlops writing = training_flops(
      decoder, forward_products(decoder, batch, double(padded_length(decoder, length)), double(context)));
  return {reading.needed + writing.needed, reading.executed + writing.executed};
}

double generation_flops(const ModelConfig& c, std::int64_t context) {
  // A token computes all but the routing of its bucket, which is done where the bucket begins.
  const double length = double(padded_length(c, context + 1));
  const Attention self{c, false, 1, length, length};
  const double attention = (self.projections() + 2 * self.scores()) / length;
  double layers = 0;
  for (std::int64_t layer = 0; layer < c.depth; ++layer)
    layers += attention + (c.has_pkm(layer) ? memory(c) : feed_forward(c));
  return 2 * (layers + outside(c));
}

}  // namespace sinkhorn
