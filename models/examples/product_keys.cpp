// Optimizer groups: the values of product-key memories are read rarely, so they learn at a rate of their own.
#include "models/examples/example.h"
#include "nn/parameter_groups.h"

using namespace sinkhorn;

int main(int argc, char** argv) {
  return examples::run(argc, argv, [](std::int64_t divisor) {
    const ModelConfig config{.num_tokens = 20000 / divisor,
                             .dim = 1024 / divisor,
                             .depth = 12,
                             .max_seq_len = 2048 / divisor,
                             .heads = 8,
                             .bucket_size = 128 / divisor,
                             .causal = true,
                             .pkm_layers = {6, 7},
                             .pkm_num_keys = 128 / divisor};
    SinkhornTransformerLM model(config);
    FlatParameters parameters(model);
    const Tensor ids = integers(Rng(1), {1, 1 + 1024 / divisor}, std::int32_t(config.num_tokens));
    for (std::int64_t step = 1; step <= 2; ++step) {
      parameters.zero_gradients();
      const Scope scope{.tape = Tape::record(/*into_parameters=*/true)};
      const Var loss = autoregressive_loss(model, scope, ids).loss;
      scope.tape.backward(loss);
      for (const ParameterGroup& group : parameter_groups(parameters)) {
        auto part = [&](const Tensor& flat) { return flat.slice(group.begin, group.end); };
        adamw_step({}, step, group.is_memory ? 1e-2 : 1e-3, part(parameters.values), part(parameters.gradients),
                   part(parameters.first_moment), part(parameters.second_moment), group.decayed);
      }
      std::cout << "step " << step << " loss " << loss.value.item() << "\n";
    }
  });
}
