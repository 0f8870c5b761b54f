// The options of the Sinkhorn transformer and of the language model around it, with what follows from them.
#pragma once
#include "models/fields.h"

namespace sinkhorn {

/// Every option, named and defaulted as in the published language model, and `head_groups`, which is ours: how layers
/// are computed, with the same parameters and, dropout of probabilities and noise aside, the same numbers to rounding.
/// Widths and counts are whole numbers.
struct ModelConfig {
  std::int64_t num_tokens = 0;  // 0: a transformer over vectors, without embedding and logits
  std::int64_t dim = 0, depth = 0;
  std::int64_t max_seq_len = 0;  // 0: not given
  std::int64_t heads = 8;
  std::optional<std::int64_t> dim_head = {};
  std::int64_t bucket_size = 64;
  std::optional<std::int64_t> kv_bucket_size = {}, context_bucket_size = {};
  bool causal = false, non_permutative = true;
  std::int64_t sinkhorn_iter = 5, n_sortcut = 0;
  double temperature = 0.75;
  bool reversible = false;
  std::int64_t ff_chunks = 1, head_groups = 1;
  bool ff_glu = false;
  double ff_dropout = 0, attn_dropout = 0, attn_layer_dropout = 0, layer_dropout = 0, emb_dropout = 0;
  bool weight_tie = false;
  std::optional<std::int64_t> emb_dim = {};
  bool return_embeddings = false, use_simple_sort_net = false, receives_context = false;
  std::int64_t context_n_sortcut = 0;
  bool context_kv_projection = true;
  std::int64_t n_local_attn_heads = 0;
  bool use_rezero = false;
  std::int64_t n_top_buckets = 2;
  std::vector<std::int64_t> pkm_layers = {};  // 1-based
  std::int64_t pkm_num_keys = 128, pkm_heads = 4, pkm_topk = 32, pkm_dim_head = 128;

  bool operator==(const ModelConfig&) const = default;

  std::int64_t head_width() const { return dim_head.value_or(dim / heads); }
  std::int64_t embedding_width() const { return emb_dim.value_or(dim); }
  std::int64_t sinkhorn_heads() const { return heads - n_local_attn_heads; }
  std::int64_t key_bucket() const { return kv_bucket_size.value_or(bucket_size); }
  std::int64_t context_bucket() const { return context_bucket_size.value_or(bucket_size); }
  /// Query buckets in the longest sequence; a `max_seq_len` between two multiples of the bucket is rounded up.
  std::int64_t max_buckets() const { return (max_seq_len + bucket_size - 1) / bucket_size; }
  /// The longest sequence the model takes (0: no limit).
  std::int64_t max_length() const { return max_buckets() * bucket_size; }
  /// Sequence lengths are multiples of this.
  std::int64_t length_multiple() const;
  /// The only length a non-causal simple sort net takes; nothing where lengths are free.
  std::optional<std::int64_t> fixed_length() const;
  /// Whether the feed-forward of this layer, counted from 0, is a product-key memory.
  bool has_pkm(std::int64_t layer) const;
  /// At least so many parameters (its matrices and tables), in f64 so that nothing overflows: enough to refuse a model
  /// that cannot fit before anything is allocated.
  double least_parameters() const;
};

/// The table of options; its slots point into `config`.
Fields fields(ModelConfig& config);
/// Throws UsageError, with the reason, for a value out of range and for options that cannot go together.
void validate(const ModelConfig& config);

std::string to_json(const ModelConfig& config);
/// Reads what `to_json` wrote. Missing and null entries keep their defaults, entries named in `beside` are ignored;
/// throws DataError, beginning with `where`, for unknown names and wrong values. Does not call `validate`.
ModelConfig model_config_from_json(std::string_view json, const std::string& where = "config",
                                   const std::vector<std::string>& beside = {});

}  // namespace sinkhorn
