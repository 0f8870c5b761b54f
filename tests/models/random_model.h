// Random causal configurations, with weights and masks, for property tests.
#pragma once
#include <memory>
#include <sstream>
#include <string>

#include "models/language_model.h"
#include "tests/shared.h"

namespace sinkhorn::testing {

/// Integers and choices from a counter stream, one call after the other.
class Dice {
 public:
  explicit Dice(std::uint64_t seed) : bits_(Rng(seed).bits()) {}
  std::int64_t upto(std::int64_t largest) {
    return std::int64_t(std::uint64_t(bits_.word(next_++)) * (largest + 1) >> 32);
  }
  std::int64_t between(std::int64_t low, std::int64_t high) { return low + upto(high - low); }
  bool chance(double p) { return bits_.uniform<double>(next_++) < p; }

 private:
  RandomBits bits_;
  std::uint64_t next_ = 0;
};

/// A valid causal language model of a few thousand parameters; no dropout.
inline ModelConfig random_config(Dice& dice) {
  ModelConfig c;
  c.causal = true;
  c.num_tokens = 7;
  c.heads = dice.between(1, 4);
  c.dim = 4 * c.heads;
  if (dice.chance(0.3)) c.dim_head = dice.between(2, 5);
  c.depth = dice.between(1, 3);
  c.bucket_size = dice.between(1, 4);
  c.max_seq_len = c.bucket_size * 6 - dice.upto(c.bucket_size - 1);
  c.n_top_buckets = dice.between(1, 3);
  c.n_local_attn_heads = dice.chance(0.5) ? dice.upto(c.heads) : 0;
  c.use_simple_sort_net = dice.chance(0.4);
  c.reversible = dice.chance(0.4);
  c.ff_glu = dice.chance(0.4);
  c.ff_chunks = dice.between(1, 3);
  c.use_rezero = dice.chance(0.3);
  c.weight_tie = dice.chance(0.3);
  if (dice.chance(0.3)) c.emb_dim = dice.between(3, 9);
  if (dice.chance(0.3)) c.temperature = 0.3;
  if (dice.chance(0.3)) {
    c.pkm_layers = {dice.between(1, c.depth)};
    c.pkm_num_keys = dice.between(1, 5);
    c.pkm_heads = dice.between(1, 3);
    c.pkm_topk = dice.between(1, 6);
    c.pkm_dim_head = dice.between(1, 6);
  }
  return c;
}

/// A model with every parameter redrawn, so that none is at a special value (ReZero starts at 0).
inline std::unique_ptr<SinkhornTransformerLM> random_model(const ModelConfig& config, std::uint64_t seed, DType dtype) {
  auto model = std::make_unique<SinkhornTransformerLM>(config, Rng(seed), dtype);
  std::uint32_t tag = 0;
  for_each_parameter(*model, [&](const std::string&, Parameter& p) {
    const Tensor noise = uniform(Rng(seed).split(++tag), p.value.shape(), -0.4, 0.4, dtype);
    const std::vector<double> a = p.value.to_vector(), b = noise.to_vector();
    std::vector<double> sum(a.size());
    for (std::size_t i = 0; i < a.size(); ++i) sum[i] = a[i] + b[i];
    p.value = Tensor::from(sum, p.value.shape()).to(dtype);
  });
  return model;
}

enum class Padding { none, right, left, holes };

/// A mask (B, T) with about a third of the tokens padded; empty for none. Every row keeps a real token.
inline Tensor random_mask(Dice& dice, Padding padding, std::int64_t batch, std::int64_t length) {
  if (padding == Padding::none) return {};
  Tensor mask = Tensor::full({batch, length}, 1, DType::boolean);
  for (std::int64_t row = 0; row < batch; ++row) {
    bool* m = mask.data<bool>() + row * length;
    const std::int64_t padded = dice.upto(std::max<std::int64_t>(length / 2, 1) - (length == 1));
    for (std::int64_t i = 0; i < padded; ++i)
      m[padding == Padding::left ? i : padding == Padding::right ? length - 1 - i : dice.upto(length - 1)] = false;
    if (padding == Padding::holes) m[dice.upto(length - 1)] = true;
  }
  return mask;
}

inline Tensor random_ids(std::uint64_t seed, std::int64_t batch, std::int64_t length, std::int64_t vocabulary) {
  return integers(Rng(seed), {batch, length}, std::int32_t(vocabulary));
}

/// The options that decide a property's outcome, for messages.
inline std::string describe(const ModelConfig& c) {
  std::ostringstream out;
  out << to_json(c);
  return out.str();
}

/// How many random configurations to try: more in the long tests.
inline int configurations(int usual, int lengthy) { return long_tests() ? lengthy : usual; }

}  // namespace sinkhorn::testing
