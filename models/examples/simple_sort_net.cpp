// Gumbel-Sinkhorn over the simple sort net: a learned map from a bucket's sums to a soft permutation of buckets.
#include "models/examples/example.h"

using namespace sinkhorn;

int main(int argc, char** argv) {
  return examples::run(argc, argv, [](std::int64_t divisor) {
    const ModelConfig config{.num_tokens = 20000 / divisor,
                             .dim = 1024 / divisor,
                             .depth = 12,
                             .max_seq_len = 2048 / divisor,  // the only length this sort net takes; others are padded
                             .heads = 8,
                             .bucket_size = 128 / divisor,
                             .non_permutative = false,  // rows of a sorting matrix, not picked buckets
                             .sinkhorn_iter = 7,
                             .use_simple_sort_net = true};
    const SinkhornTransformerLM model(config);
    const Tensor ids = integers(Rng(1), {1, config.max_seq_len}, std::int32_t(config.num_tokens));
    const Scope training{.rng = Rng(2), .training = true};  // Gumbel noise comes with training only
    std::cout << "logits " << model(training, ids).shape() << "\n";
  });
}
