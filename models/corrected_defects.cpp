#include "models/corrected_defects.h"

namespace sinkhorn {

std::vector<std::string> corrected_defects(const ModelConfig& c, bool half) {
  std::vector<std::string> all;
  const auto add = [&](bool concerns, const char* sentence) {
    if (concerns) all.emplace_back(sentence);
  };
  const bool sorts = c.sinkhorn_heads() > 0, free = !c.causal && sorts, cross = c.receives_context;
  const bool attention_sorted = free && !c.use_simple_sort_net;
  add(free && c.n_sortcut == 0,
      "sorted buckets gave their reordered keys in place of values; here they give values, whose projection was "
      "trained on the query's own bucket alone");
  add((attention_sorted || cross) && c.non_permutative && c.temperature != 1,
      "top-k of the attention sort net ignored the temperature where it is not causal; set temperature = 1 for the "
      "trained routing, if no other layer uses it");
  add((free || (cross && !c.causal)) && !c.non_permutative,
      "Gumbel noise was drawn in evaluation too; here in training only");
  add((attention_sorted && c.n_sortcut > 0 && !c.non_permutative) ||
          (cross && !c.causal && c.context_n_sortcut > 0 && !c.non_permutative),
      "SortCut with Gumbel-Sinkhorn summed all key buckets into one; here it takes the first buckets of the sorted "
      "sequence");
  add(free && c.key_bucket() != c.bucket_size,
      "a query lost its own bucket where query and key buckets differ in number; here it always sees it");
  add(c.causal && sorts && c.n_top_buckets > 1,
      "sequences of fewer buckets than n_top_buckets had fewer null buckets and picks; here their number is fixed");
  add(cross && c.causal,
      "cross-attention chose context buckets from the mean of queries that include later ones; here from those so far, "
      "by top-k");
  add(cross,
      "cross-attention also saw the context bucket of its own number where both sides had equally many; here never");
  add(cross, "without a context mask the decoder's mask was used; here all of the context is real");
  add(half && c.n_local_attn_heads > 0,
      "local heads compared positions rounded to half precision, and saw later tokens beyond position 256 in bf16 or "
      "2048 in f16; here positions are whole numbers");
  add(true,
      "padding took part in routing and, padded on the left as the package's wrapper does, moved positions; here it "
      "stands on the right and changes nothing");
  return all;
}

}  // namespace sinkhorn
