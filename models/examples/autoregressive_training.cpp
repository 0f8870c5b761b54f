// Training on randomly truncated sequences, with buckets of 75 tokens, then text from a prompt.
#include "models/examples/example.h"
#include "nn/flat_parameters.h"

using namespace sinkhorn;

int main(int argc, char** argv) {
  return examples::run(argc, argv, [](std::int64_t divisor) {
    const ModelConfig config{.num_tokens = 20000 / divisor,
                             .dim = 1024 / divisor,
                             .depth = 12,
                             .max_seq_len = 8192 / divisor,  // rounded up to whole buckets
                             .heads = 8,
                             .bucket_size = 75 / divisor,
                             .causal = true,
                             .reversible = true};
    SinkhornTransformerLM model(config);
    const Tensor ids = integers(Rng(1), {1, config.max_seq_len + 1}, std::int32_t(config.num_tokens));
    const Scope training{.tape = Tape::record(), .rng = Rng(2), .training = true};
    const MaskedIds cut = randomly_truncate(ids, {}, Rng(3));
    const LanguageModelLoss result = autoregressive_loss(model, training, cut.ids, cut.mask);
    training.tape.backward(result.loss);
    std::cout << "loss " << result.loss.value.item() << " over " << result.counted << " tokens\n";

    const auto text = generate(model, {{1, 2, 3}}, 20, {.temperature = 0.8, .top_p = 0.9}, Rng(4));
    std::cout << "generated " << text[0].size() << " tokens\n";
  });
}
