// Random configurations of every kind of model, with weights and masks, for property tests.
#pragma once
#include <memory>
#include <sstream>
#include <string>

#include "models/encoder_decoder.h"
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

/// Whether a causal model may compute its heads in two groups.
inline bool has_even_kinds_of_heads(const ModelConfig& c) {
  return c.n_local_attn_heads % 2 == 0 && c.sinkhorn_heads() % 4 == 0;
}

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
  if (c.reversible && has_even_kinds_of_heads(c)) c.head_groups = dice.between(1, 2);
  return c;
}

/// The same for a model that looks both ways: Gumbel-Sinkhorn, SortCut and key buckets of another size among them.
inline ModelConfig random_config_both_ways(Dice& dice) {
  ModelConfig c = random_config(dice);
  c.causal = false;
  c.non_permutative = dice.chance(0.5);
  c.sinkhorn_iter = dice.between(1, 6);
  if (dice.chance(0.4)) c.n_sortcut = dice.between(1, 4);
  if (dice.chance(0.4)) c.kv_bucket_size = dice.between(1, 4);
  c.use_simple_sort_net = dice.chance(0.3) && c.key_bucket() == c.bucket_size;
  c.max_seq_len = c.length_multiple() * 6;
  return c;
}

/// An encoder and a decoder, causal two times in three, that fit together.
inline EncoderDecoderConfig random_pair_config(Dice& dice) {
  EncoderDecoderConfig pair{random_config_both_ways(dice),
                            dice.chance(2.0 / 3) ? random_config(dice) : random_config_both_ways(dice)};
  ModelConfig &encoder = pair.encoder, &decoder = pair.decoder;
  encoder.return_embeddings = decoder.receives_context = true;
  encoder.dim = decoder.dim;
  if (encoder.dim % encoder.heads != 0) encoder.dim_head = 3;
  if (dice.chance(0.5)) decoder.context_bucket_size = dice.between(1, 4);
  if (dice.chance(0.4)) decoder.context_n_sortcut = dice.between(1, 3);
  decoder.context_kv_projection = decoder.dim_head || dice.chance(0.5);
  return pair;
}

/// Moves every parameter of a module, so that none is at a special value (ReZero starts at 0).
template <class Module>
void move_parameters(Module& module, std::uint64_t seed) {
  std::uint32_t tag = 0;
  for_each_parameter(module, [&](const std::string&, Parameter& p) {
    const DType dtype = p.value.dtype();
    const Tensor noise = uniform(Rng(seed).split(++tag), p.value.shape(), -0.4, 0.4, dtype);
    const std::vector<double> a = p.value.to_vector(), b = noise.to_vector();
    std::vector<double> sum(a.size());
    for (std::size_t i = 0; i < a.size(); ++i) sum[i] = a[i] + b[i];
    p.value.assign(Tensor::from(sum, p.value.shape()).to(dtype));
  });
}

inline std::unique_ptr<SinkhornTransformerLM> random_model(const ModelConfig& config, std::uint64_t seed, DType dtype) {
  auto model = std::make_unique<SinkhornTransformerLM>(config, Rng(seed), dtype);
  move_parameters(*model, seed);
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
