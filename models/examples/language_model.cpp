// A language model that looks both ways, with every option: SortCut, local heads, product keys, tied reversible layers.
#include "models/examples/example.h"

using namespace sinkhorn;

int main(int argc, char** argv) {
  return examples::run(argc, argv, [](std::int64_t divisor) {
    const ModelConfig config{
        .num_tokens = 20000 / divisor,
        .dim = 1024 / divisor,
        .depth = 12,
        .max_seq_len = 8192 / divisor,
        .heads = 8,
        .dim_head = 64 / divisor,  // heads * dim_head need not be dim
        .bucket_size = 128 / divisor,
        .causal = false,
        .n_sortcut = 2,  // all queries share the same two sorted buckets
        .temperature = 0.75,
        .reversible = true,  // memory does not grow with depth
        .ff_chunks = 10,
        .ff_glu = true,
        .ff_dropout = 0.1,
        .attn_dropout = 0.1,
        .attn_layer_dropout = 0.1,
        .layer_dropout = 0.1,      // skips whole blocks in training
        .weight_tie = true,        // one attention and one feed-forward for all layers
        .emb_dim = 128 / divisor,  // embeddings are narrower than the model
        .n_local_attn_heads = 2,   // see their own and the neighbouring windows
        .n_top_buckets = 2,
        .pkm_layers = {4, 7},           // their feed-forward is a product-key memory
        .pkm_num_keys = 128 / divisor,  // of this many keys squared
    };
    const SinkhornTransformerLM model(config);
    const Tensor ids = integers(Rng(1), {1, 2048 / divisor}, std::int32_t(config.num_tokens));
    std::cout << "logits " << model(Scope{}, ids).shape() << "\n";
  });
}
