// Sequence to sequence: an encoder that looks both ways, and a causal decoder that attends to it with SortCut.
#include "models/examples/example.h"

using namespace sinkhorn;

int main(int argc, char** argv) {
  return examples::run(argc, argv, [](std::int64_t divisor) {
    const std::int64_t length = 4096 / divisor;
    const ModelConfig shared{.num_tokens = 20000 / divisor,
                             .dim = 512 / divisor,
                             .depth = 6,
                             .max_seq_len = length,
                             .heads = 8,
                             .bucket_size = 128 / divisor,
                             .reversible = true};
    EncoderDecoderConfig config{shared, shared};
    config.encoder.n_sortcut = 2;
    config.encoder.return_embeddings = true;
    config.decoder.causal = true;
    config.decoder.receives_context = true;
    config.decoder.context_bucket_size = 128 / divisor;  // buckets of the context may have their own size
    config.decoder.context_n_sortcut = 2;                // and be cut to the best two for the whole target
    const EncoderDecoder model(config);

    auto some_ids = [&](std::uint64_t seed) {
      const Tensor all_real = Tensor::full({1, length}, 1, DType::boolean);
      return MaskedIds{integers(Rng(seed), {1, length}, std::int32_t(shared.num_tokens)), all_real};
    };
    const Scope training{.tape = Tape::record(), .rng = Rng(3), .training = true};
    const LanguageModelLoss result = model.loss(training, some_ids(1), some_ids(2));
    training.tape.backward(result.loss);  // through the decoder and, once, through the encoder
    std::cout << "loss " << result.loss.value.item() << " over " << result.counted << " tokens\n";
  });
}
