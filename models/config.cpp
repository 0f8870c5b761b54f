#include "models/config.h"

#include <algorithm>
#include <numeric>
#include <set>

#include "autograd/error.h"

namespace sinkhorn {

std::int64_t ModelConfig::length_multiple() const { return std::lcm(bucket_size, key_bucket()); }

std::optional<std::int64_t> ModelConfig::fixed_length() const {
  if (use_simple_sort_net && !causal) return max_length();
  return std::nullopt;
}

bool ModelConfig::has_pkm(std::int64_t layer) const {
  return std::find(pkm_layers.begin(), pkm_layers.end(), layer + 1) != pkm_layers.end();
}

double ModelConfig::least_parameters() const {
  const double width = double(dim), inner = double(heads) * double(head_width()), outer = double(embedding_width());
  const double contexts = receives_context ? 1 : 0, layers = weight_tie ? 1 : double(depth);
  const double attention = 4 * width * inner, feed_forward = (ff_glu ? 12 : 8) * width * width;
  const double cross = (context_kv_projection ? 4 : 2) * width * inner + feed_forward;
  const double sort_net = use_simple_sort_net ? double(sinkhorn_heads()) * 2 * double(head_width()) *
                                                    double(max_buckets() + (causal ? n_top_buckets : 0))
                                              : 0;
  const double tables =
      (double(num_tokens) * (return_embeddings ? 1 : 2) + double(max_buckets() + bucket_size)) * outer;
  const double keys = double(pkm_num_keys), halves = 2 * double(pkm_heads) * double(pkm_dim_head);
  const double memory = (width + keys) * halves + keys * keys * width;
  const std::set<std::int64_t> memories(pkm_layers.begin(), pkm_layers.end());
  const double others = double(depth) - double(memories.size()),
               feed_forwards = weight_tie ? std::min(others, 1.0) : others;
  const double residual = 2 * (use_rezero ? 1 : 2 * width) * double(depth) * (1 + contexts);
  return layers * (attention + sort_net + contexts * cross) + feed_forwards * feed_forward +
         double(memories.size()) * memory + residual + (num_tokens > 0 ? tables : 0);
}

Fields fields(ModelConfig& c) {
  const Accepts dropout = from_below(0, 1), flag = anything();
  return {
      {"num_tokens", &c.num_tokens, at_least(0), "vocabulary size; training takes it from the data"},
      {"dim", &c.dim, at_least(1), "width of the transformer"},
      {"depth", &c.depth, between(1, 1 << 16), "number of layers"},
      {"max_seq_len", &c.max_seq_len, at_least(0), "longest sequence; training defaults to seq_len"},
      {"heads", &c.heads, at_least(1), "attention heads"},
      {"dim_head", &c.dim_head, at_least(1), "width of a head; default dim / heads"},
      {"bucket_size", &c.bucket_size, at_least(1), "tokens in a bucket; sequence lengths are multiples of it"},
      {"kv_bucket_size", &c.kv_bucket_size, at_least(1), "tokens in a key bucket; default bucket_size"},
      {"context_bucket_size", &c.context_bucket_size, at_least(1), "tokens in a context bucket; default bucket_size"},
      {"causal", &c.causal, flag, "no position sees a later one"},
      {"non_permutative", &c.non_permutative, flag, "route by top-k; off: by Gumbel-Sinkhorn (causal is always top-k)"},
      {"sinkhorn_iter", &c.sinkhorn_iter, at_least(1), "Sinkhorn normalisation rounds"},
      {"n_sortcut", &c.n_sortcut, at_least(0), "SortCut: key buckets shared by all queries; 0 is off"},
      {"temperature", &c.temperature, above(0), "temperature of bucket routing"},
      {"reversible", &c.reversible, flag, "reversible layers: memory does not grow with depth"},
      {"ff_chunks", &c.ff_chunks, at_least(1), "pieces in which the feed-forward runs"},
      {"head_groups", &c.head_groups, at_least(1),
       "groups in which reversible self-attention computes its heads, one at a time to save memory"},
      {"ff_glu", &c.ff_glu, flag, "gated feed-forward"},
      {"ff_dropout", &c.ff_dropout, dropout, "dropout in the feed-forward"},
      {"attn_dropout", &c.attn_dropout, dropout, "dropout of attention probabilities"},
      {"attn_layer_dropout", &c.attn_layer_dropout, dropout, "dropout after attention"},
      {"layer_dropout", &c.layer_dropout, dropout, "probability of skipping a block in training"},
      {"emb_dropout", &c.emb_dropout, dropout, "dropout of embeddings"},
      {"weight_tie", &c.weight_tie, flag, "one attention and one feed-forward for all layers"},
      {"emb_dim", &c.emb_dim, at_least(1), "width of embeddings; default dim"},
      {"return_embeddings", &c.return_embeddings, flag, "return normalised features, not logits"},
      {"use_simple_sort_net", &c.use_simple_sort_net, flag, "sort by a learned projection of bucket sums"},
      {"receives_context", &c.receives_context, flag, "add cross-attention to an encoder's output"},
      {"context_n_sortcut", &c.context_n_sortcut, at_least(0), "SortCut of cross-attention; 0 is off"},
      {"context_kv_projection", &c.context_kv_projection, flag, "project the context to keys and values"},
      {"n_local_attn_heads", &c.n_local_attn_heads, at_least(0), "heads that attend to neighbouring buckets only"},
      {"use_rezero", &c.use_rezero, flag, "learned residual scales from 0 in place of layer norms"},
      {"n_top_buckets", &c.n_top_buckets, at_least(1), "key buckets each query bucket receives"},
      {"pkm_layers", &c.pkm_layers, at_least(1), "layers, from 1, whose feed-forward is a product-key memory"},
      {"pkm_num_keys", &c.pkm_num_keys, between(1, 46340),
       "product keys a half; the memory holds the square; on a GPU up to 4096"},
      {"pkm_heads", &c.pkm_heads, at_least(1), "product-key heads"},
      {"pkm_topk", &c.pkm_topk, at_least(1), "memory slots a head reads, at most pkm_num_keys"},
      {"pkm_dim_head", &c.pkm_dim_head, at_least(1), "width of half a product-key query"},
  };
}

void validate(const ModelConfig& given) {
  ModelConfig c = given;
  check_ranges(fields(c), "model");
  const auto refuse = [](const auto&... parts) { fail<UsageError>("model: ", parts...); };
  if (!c.dim_head && c.dim % c.heads != 0)
    refuse("dim ", c.dim, " does not divide by heads ", c.heads, "; change one of them or give dim_head");
  if (c.n_local_attn_heads > c.heads)
    refuse("n_local_attn_heads ", c.n_local_attn_heads, " is more than heads ", c.heads, "; lower it to at most ",
           c.heads);
  if (c.num_tokens > 0 && c.max_seq_len < 1)
    refuse("a language model needs max_seq_len, the length of its position tables");
  if (c.num_tokens == 0 && (c.emb_dim || c.return_embeddings))
    refuse(c.emb_dim ? "emb_dim" : "return_embeddings", " belongs to a language model; give num_tokens or drop it");
  if (c.causal && c.n_sortcut > 0)
    refuse(
        "n_sortcut shares key buckets among all queries, which would show a causal model the future; set n_sortcut 0 "
        "or causal false");
  if (c.causal && c.key_bucket() != c.bucket_size)
    refuse("a causal model needs equal buckets to know what is past: kv_bucket_size ", c.key_bucket(), ", bucket_size ",
           c.bucket_size, "; leave kv_bucket_size out");
  if (c.use_simple_sort_net && c.key_bucket() != c.bucket_size)
    refuse("the simple sort net maps bucket to bucket, so kv_bucket_size ", c.key_bucket(), " must equal bucket_size ",
           c.bucket_size, "; leave kv_bucket_size out or set use_simple_sort_net false");
  if (c.use_simple_sort_net && c.max_seq_len < 1)
    refuse("the simple sort net has one output per bucket, so it needs max_seq_len");
  if (c.receives_context && !c.context_kv_projection && c.heads * c.head_width() != c.dim)
    refuse("without context_kv_projection the context itself is split into heads, so heads ", c.heads, " x head width ",
           c.head_width(), " must be dim ", c.dim, "; set context_kv_projection true");
  if (c.head_groups > 1 && !c.reversible)
    refuse("head_groups ", c.head_groups,
           " saves memory only where layers are computed again; set reversible true or head_groups 1");
  // Of a causal model the two halves of the sorting heads are of different kinds.
  const std::int64_t kinds = c.causal ? 2 : 1;
  if (c.head_groups > 1 && c.n_local_attn_heads % c.head_groups != 0)
    refuse("head_groups ", c.head_groups, " does not divide n_local_attn_heads ", c.n_local_attn_heads,
           ", of which groups have equal shares; change one of them");
  if (c.head_groups > 1 && c.sinkhorn_heads() % (kinds * c.head_groups) != 0)
    refuse("head_groups ", c.head_groups, " does not divide ", c.causal ? "each half of " : "", "the ",
           c.sinkhorn_heads(), " heads that are not local", c.causal ? " (a causal model rotates one half)" : "",
           ", of which groups have equal shares; change one of them");
  for (const auto layer : c.pkm_layers)
    if (layer > c.depth) refuse("pkm_layers names layer ", layer, ", but depth is ", c.depth, " (layers count from 1)");
}

std::string to_json(const ModelConfig& config) {
  ModelConfig copy = config;
  return fields_to_json(fields(copy));
}

ModelConfig model_config_from_json(std::string_view json, const std::string& where,
                                   const std::vector<std::string>& beside) {
  ModelConfig config;
  fields_from_json(fields(config), json, where, beside);
  return config;
}

}  // namespace sinkhorn
