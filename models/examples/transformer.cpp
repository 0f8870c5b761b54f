// The plain transformer: vectors in, vectors out; differentiable with respect to both its input and its weights.
#include "models/examples/example.h"

using namespace sinkhorn;

int main(int argc, char** argv) {
  return examples::run(argc, argv, [](std::int64_t divisor) {
    const ModelConfig config{.dim = 1024 / divisor, .depth = 12, .heads = 8, .bucket_size = 128 / divisor};
    Initializer init(Rng(0), DType::f32);
    const SinkhornTransformer model(config, init);
    const Tape tape = Tape::record();
    const Var x = tape.leaf(normal(Rng(1), {1, 2048 / divisor, config.dim}, 0, 1));
    const Var y = model(Scope{.tape = tape}, x);
    const Gradients gradients = tape.backward(mean(square(y)));
    std::cout << "out " << y.shape() << ", gradient of x " << gradients.of(x).shape() << "\n";
  });
}
