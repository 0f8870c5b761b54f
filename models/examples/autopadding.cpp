// Sequences of any length: 1,117 tokens into a model whose lengths are multiples of its bucket size.
#include "models/examples/example.h"

using namespace sinkhorn;

int main(int argc, char** argv) {
  return examples::run(argc, argv, [](std::int64_t divisor) {
    const ModelConfig config{.num_tokens = 20000 / divisor,
                             .dim = 1024 / divisor,
                             .depth = 12,
                             .max_seq_len = 2048 / divisor,
                             .heads = 8,
                             .bucket_size = 128 / divisor,
                             .causal = true};
    const SinkhornTransformerLM model(config);
    const Tensor ids = integers(Rng(1), {1, 1117 / divisor}, std::int32_t(config.num_tokens));
    // Padded on either side, masked, and cut back to the length that was given.
    std::cout << "right " << padded(model, Scope{}, ids).shape() << ", left "
              << padded(model, Scope{}, ids, {}, Side::left).shape() << "\n";
  });
}
