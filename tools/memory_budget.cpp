#include "tools/memory_budget.h"

#include <fmt/format.h>

#include <algorithm>

#include "autograd/pool.h"
#include "cuda/device.h"
#include "cuda/planes_gemm.h"
#include "nn/layers.h"

namespace sinkhorn {
namespace {

using Lines = std::vector<MemoryLine>;

/// The extents that sizes are made of, and the tensors that several phases share.
class Step {
 public:
  Step(const ModelConfig& model, const TrainConfig& train, Device device, std::int64_t parameters,
       std::optional<bool> packs_f32)
      : m_(model), device_(device), packs_f32_(packs_f32), parameters_(parameters), batch_(train.batch_size) {
    const std::int64_t multiple = model.length_multiple();
    length_ = (train.seq_len + multiple - 1) / multiple * multiple;
    is_mixed_ = train.precision == "bf16";
    is_full_ = train.precision == "f32";
    tokens_ = batch_ * length_;
    heads_width_ = model.heads * model.head_width();
  }

  MemoryPhase logits() const {
    const std::int64_t width = m_.embedding_width();
    Lines lines = throughout();
    if (projects()) {
      add(lines, "sum of the pair, as projected", "(B, T, D)", tokens_ * m_.dim, activation());
      add(lines, "features", "(B, T, E)", tokens_ * width, kFull);
    } else {
      add(lines, "sum of the pair", "(B, T, D)", tokens_ * m_.dim, kFull);
    }
    add(lines, "features, normalised", "(B, T, E)", tokens_ * width, activation());
    add(lines, "their gradient", "(B, T, E)", tokens_ * width, activation());
    const std::int64_t at_once = std::min(tokens_, ops::LinearCrossEntropy::rows_at_once(m_.num_tokens));
    add(lines, "logits, then their gradient", at_once < tokens_ ? fmt::format("({} tokens, V)", at_once) : "(B, T, V)",
        at_once * m_.num_tokens, activation());
    add(lines, "losses", "(B, T)", tokens_, kFull);
    add(lines, "gradient of the last projection", "(V, E)", m_.num_tokens * width, kFull);
    return {"logits and loss", lines};
  }

  MemoryPhase feed_forward() const {
    Lines lines = in_chain();
    const std::int64_t wanted = FeedForward::tokens_at_once(tokens_, m_.ff_chunks, m_.ff_dropout);
    const std::int64_t piece = wanted > 0 ? std::min(wanted, tokens_) : tokens_;
    const std::int64_t inside = 4 * m_.dim, hidden = inside * (m_.ff_glu ? 2 : 1);
    const std::string rows = piece < tokens_ ? fmt::format("({} tokens, ", piece) : "(B, T, ";
    add(lines, "normalised input", rows + "D)", piece * m_.dim, activation());
    add(lines, "hidden", rows + (m_.ff_glu ? "8 D)" : "4 D)"), piece * hidden, activation());
    // The fuller of two moments: back through the second product, or through the GELU, which needs no result of its
    // own.
    const std::int64_t packed = packs(m_.dim, inside, piece) ? inside + m_.dim : 0;
    const std::int64_t at_product = 2 * inside + packed + (is_mixed_ ? m_.dim : 0), at_gelu = inside + hidden;
    if (at_product >= at_gelu) {
      add(lines, "GELU", rows + "4 D)", piece * inside, activation());
      add(lines, "gradient of the GELU", rows + "4 D)", piece * inside, activation());
      if (is_mixed_) add(lines, "gradient, rounded", rows + "D)", piece * m_.dim, activation());
      add(lines, "operands of the second product, packed", rows + "5 D)", piece * packed, kFull);
    } else {
      add(lines, "gradient of the GELU", rows + "4 D)", piece * inside, activation());
      add(lines, "gradient of hidden", rows + "8 D)", piece * hidden, activation());
    }
    if (m_.ff_dropout > 0) add(lines, "GELU after dropout", rows + "4 D)", piece * inside, activation());
    return {"a feed-forward, backward", lines};
  }

  MemoryPhase attention() const {
    // Of one group of heads, H and h of them.
    Lines lines = in_chain();
    const std::int64_t groups = m_.head_groups, width = heads_width_ / groups;
    const std::int64_t n = tokens_ * width, per_head = batch_ * m_.heads / groups * length_;
    add(lines, "normalised input", "(B, T, D)", tokens_ * m_.dim, activation());
    add(lines, "mean, 1 / deviation", "2 x (B, T)", tokens_, kFull, 2);
    if (groups > 1) {
      add(lines, "the group's weights", "(3 H d, D)", 3 * width * m_.dim, kFull);
      if (is_mixed_) add(lines, "the group's weights, rounded", "(3 H d, D)", 3 * width * m_.dim, activation());
    }
    add(lines, "queries, keys and values", "(B, T, 3, H, d)", 3 * n, activation());
    add(lines, "result", "(B, T, H, d)", n, activation());
    if (is_mixed_) add(lines, "what rounding took from it", "(B, T, H, d)", n, activation());
    add(lines, "gradient of the result", "(B, T, H, d)", n, activation());
    add(lines, "gradient of queries, keys and values", "(B, T, 3, H, d)", 3 * n, activation());
    add(lines, "log-sum-exp", "(B, H, T)", per_head, kFull);
    const std::int64_t sorting = m_.sinkhorn_heads() / groups, buckets = length_ / m_.bucket_size;
    const std::int64_t rows = batch_ * sorting * buckets;
    if (rows > 0) {
      add(lines, "bucket summaries", "2 x (B, h, N, d)", rows * m_.head_width(), kFull, 2);
      add(lines, "picks' weights and sums", "(B, h, N, 5 n)", 5 * rows * m_.n_top_buckets, kFull);
      // Scores before and behind the mask and what the mask is, in backward of attention still there.
      if (m_.use_simple_sort_net)
        add(lines, "scores", "2 x (B, h, N, n + N)", rows * (m_.n_top_buckets + buckets), 4, 2);
    }
    if (device_ == Device::cuda) {
      add(lines, "<dy, y>", "(B, H, T)", per_head, kFull);
      if (m_.causal) {
        // Sums of each 32 queries; on tensor cores of each 64, which is half as much.
        const std::int64_t sums = rows * ((m_.bucket_size + 31) / 32);
        add(lines, "partial sums for null keys and values", "2 x (sums, d)", sums * m_.head_width(), kFull, 2);
      }
    }
    return {groups > 1 ? "a group of heads, backward" : "an attention, backward", lines};
  }

 private:
  static constexpr std::int64_t kFull = 4;  // bytes

  bool projects() const { return m_.embedding_width() != m_.dim; }
  // Whether the product of these extents, a gradient of weights, packs its operands.
  bool packs(std::int64_t m, std::int64_t n, std::int64_t k) const {
    if (packs_f32_) return *packs_f32_;
    return is_full_ && device_ == Device::cuda && cuda::is_usable() && cuda::PlanesGemm::is_here() &&
           cuda::PlanesGemm::pays({m, n, k, true, false, nullptr, nullptr, nullptr});
  }
  std::int64_t activation() const { return is_mixed_ ? 2 : kFull; }

  void add(Lines& lines, const std::string& what, const std::string& shape, std::int64_t elements, std::int64_t bytes,
           std::int64_t count = 1) const {
    if (elements == 0) return;
    const std::string type = shape.ends_with(" i32") ? "" : bytes == 2 ? " bf16" : " f32";
    lines.push_back({what, shape + type, std::size_t(count) * pooled_bytes(std::size_t(elements * bytes))});
  }

  // From the beginning of a step to its end.
  Lines throughout() const {
    Lines lines;
    add(lines, "parameters, gradients, two moments", "4 x parameters", parameters_, kFull, 4);
    if (is_mixed_) add(lines, "parameters, rounded", "parameters", parameters_, 2);
    // On the CPU the batch itself, on a device a copy that ends with the loss but for the ids.
    add(lines, "token ids", device_ == Device::cpu ? "2 x (B, T) i32" : "(B, T) i32", tokens_, kFull,
        device_ == Device::cpu ? 2 : 1);
    if (projects()) add(lines, "embeddings", "(B, T, E)", tokens_ * m_.embedding_width(), activation());
    add(lines, "residual pair", "2 x (B, T, D)", tokens_ * m_.dim, kFull, 2);
    const std::int64_t picks = batch_ * m_.sinkhorn_heads() * (length_ / m_.bucket_size) * m_.n_top_buckets;
    add(lines, "picks of all layers", "depth x (B, h, N, n) i32", picks, kFull, m_.depth);
    return lines;
  }
  Lines in_chain() const {
    Lines lines = throughout();
    add(lines, "gradient of the pair", "2 x (B, T, D)", tokens_ * m_.dim, kFull, 2);
    return lines;
  }

  const ModelConfig& m_;
  Device device_;
  std::optional<bool> packs_f32_;
  std::int64_t parameters_, batch_, length_, tokens_, heads_width_;
  bool is_mixed_, is_full_;
};

}  // namespace

std::size_t MemoryPhase::bytes() const {
  std::size_t sum = 0;
  for (const MemoryLine& line : lines) sum += line.bytes;
  return sum;
}

const MemoryPhase& MemoryBudget::peak() const {
  return *std::max_element(phases.begin(), phases.end(),
                           [](const MemoryPhase& a, const MemoryPhase& b) { return a.bytes() < b.bytes(); });
}

std::optional<MemoryBudget> memory_budget(const ModelConfig& model, const TrainConfig& train, Device device,
                                          std::int64_t parameters, std::optional<bool> packs_f32) {
  const bool counted = model.reversible && model.causal && !train.encoder_decoder && model.pkm_layers.empty() &&
                       !model.return_embeddings && !model.receives_context;
  if (!counted) return std::nullopt;
  const Step step(model, train, device, parameters, packs_f32);
  return MemoryBudget{{step.logits(), step.feed_forward(), step.attention()}};
}

std::string in_units(std::size_t bytes) {
  const double kib = double(bytes) / 1024;
  return kib < 1024          ? fmt::format("{:.1f} KiB", kib)
         : kib < 1024 * 1024 ? fmt::format("{:.1f} MiB", kib / 1024)
                             : fmt::format("{:.2f} GiB", kib / (1024 * 1024));
}

std::string to_table(const MemoryBudget& budget) {
  const MemoryPhase& peak = budget.peak();
  std::vector<MemoryLine> lines = peak.lines;
  std::stable_sort(lines.begin(), lines.end(),
                   [](const MemoryLine& a, const MemoryLine& b) { return a.bytes > b.bytes; });
  std::string text = fmt::format("memory at the fullest moment of a step, {}:\n", peak.name);
  for (const MemoryLine& line : lines)
    text += fmt::format("  {:>10}  {:<38} {}\n", in_units(line.bytes), line.what, line.shape);
  text += fmt::format("  {:>10}  in all", in_units(peak.bytes()));
  for (const MemoryPhase& phase : budget.phases)
    if (phase.name != peak.name) text += fmt::format("; {}: {}", phase.name, in_units(phase.bytes()));
  return text + "\n";
}

}  // namespace sinkhorn
