#include "tools/bench_cases.h"

#include <algorithm>
#include <map>

#include "autograd/error.h"

namespace sinkhorn {
namespace {

using Kind = BenchCase::Kind;

/// The published package's enwik8 example.
ModelConfig enwik8_model(std::int64_t max_seq_len) {
  return {.num_tokens = 256,
          .dim = 512,
          .depth = 8,
          .max_seq_len = max_seq_len,
          .heads = 8,
          .bucket_size = 128,
          .causal = true,
          .reversible = true,
          .ff_chunks = 2,
          .emb_dim = 128,
          .n_local_attn_heads = 4,
          .n_top_buckets = 2};
}

/// The same without recomputation: all activations are kept, and nothing is cut into pieces.
ModelConfig kept(ModelConfig model) {
  model.reversible = false;
  model.ff_chunks = 1;
  return model;
}

ModelConfig large_model() {
  return {.num_tokens = 20000,
          .dim = 1024,
          .depth = 12,
          .max_seq_len = 8192,
          .heads = 8,
          .dim_head = 64,
          .bucket_size = 128,
          .causal = true,
          .reversible = true,
          .ff_chunks = 10,
          .ff_glu = true,
          .emb_dim = 128,
          .n_local_attn_heads = 2,
          .n_top_buckets = 2};
}

/// models/examples/language_model.cpp
ModelConfig full_model() {
  ModelConfig model = large_model();
  model.causal = false;
  model.n_sortcut = 2;
  model.ff_dropout = model.attn_dropout = model.attn_layer_dropout = model.layer_dropout = 0.1;
  model.weight_tie = true;
  model.pkm_layers = {4, 7};
  return model;
}

/// models/examples/encoder_decoder.cpp
ModelConfig pair_model() {
  return {.num_tokens = 20000,
          .dim = 512,
          .depth = 6,
          .max_seq_len = 4096,
          .heads = 8,
          .bucket_size = 128,
          .context_bucket_size = 128,
          .causal = true,
          .n_sortcut = 2,
          .reversible = true,
          .context_n_sortcut = 2};
}

/// models/examples/autoregressive_training.cpp
ModelConfig odd_bucket_model() {
  return {.num_tokens = 20000,
          .dim = 1024,
          .depth = 12,
          .max_seq_len = 8192,
          .heads = 8,
          .bucket_size = 75,
          .causal = true,
          .reversible = true};
}

ModelConfig cpu_model() {
  return {.num_tokens = 128,
          .dim = 128,
          .depth = 4,
          .max_seq_len = 512,
          .heads = 4,
          .bucket_size = 32,
          .causal = true,
          .n_local_attn_heads = 2,
          .n_top_buckets = 2};
}

// The dense model at R-kept has no GLU.
BenchReference reference_of(const std::string& name) {
  static const std::map<std::string, BenchReference> known{
      {"E-B4", {104700, 1095000}},    {"E-B16", {197700, 1297000}},  {"E-B16-kept", {279800, 1297000}},
      {"E-B4-f32", {70000, 0}},       {"E-B4-tf32", {85000, 0}},     {"R", {20300, 0}},
      {"R-kept", {0, 278000}},        {"E-T1024", {0, 1713000}},     {"E-T2048", {0, 1540000}},
      {"E-T8192", {44700, 634000}},   {"E-T65536", {45400, 209500}}, {"E-T204800", {46200, 69600}},
      {"E-T409600", {44500, 26900}},  {"E-T819200", {42100, 0}},     {"generation-512", {28.8, 0}},
      {"generation-8000", {12.7, 0}}, {"readme-full", {11700, 0}}};
  const auto at = known.find(name);
  return at == known.end() ? BenchReference{} : at->second;
}

std::vector<BenchCase> all_cases() {
  std::vector<BenchCase> all;
  const auto trains = [&](const std::string& name, const std::string& purpose, const ModelConfig& model,
                          std::int64_t batch, std::int64_t length, const std::string& precision = "bf16",
                          std::int64_t source_length = 0, Device device = Device::cuda) {
    all.push_back({name, purpose, model, Kind::training, precision, batch, length, source_length, device});
  };
  const auto generates = [&](const std::string& name, const std::string& purpose, const ModelConfig& model,
                             std::int64_t streams, std::int64_t context, Device device) {
    all.push_back({name, purpose, model, Kind::generation, "f32", streams, context, 0, device});
  };
  const ModelConfig e = enwik8_model(4096), r = large_model();
  trains("E-B4", "enwik8 model, 25 M parameters, 4 x 4,096, reversible", e, 4, 4096);
  trains("E-B16", "the same, 16 x 4,096", e, 16, 4096);
  trains("E-B16-kept", "not reversible: all activations kept", kept(e), 16, 4096);
  trains("E-B4-f32", "E-B4 in f32", e, 4, 4096, "f32");
  trains("E-B4-tf32", "E-B4 with products and attention in TF32", e, 4, 4096, "tf32");
  trains("R", "182 M parameters, GLU, 20,000 tokens", r, 1, 8192);
  trains("R-kept", "not reversible, in one piece", kept(r), 1, 8192);
  for (const std::int64_t length : {1024, 2048})
    trains("E-T" + std::to_string(length), "enwik8 model, 65,536 tokens a step", enwik8_model(length), 65536 / length,
           length);
  for (const std::int64_t length : {8192, 65536, 204800, 409600, 819200, 1638400, 4194304})
    trains("E-T" + std::to_string(length), "enwik8 model, one long row", enwik8_model(length), 1, length);
  generates("generation-512", "enwik8 model, one stream behind 512 characters", enwik8_model(8192), 1, 512,
            Device::cuda);
  generates("generation-512-B64", "64 streams at once", enwik8_model(8192), 64, 512, Device::cuda);
  generates("generation-8000", "one stream behind 8,000", enwik8_model(8192), 1, 8000, Device::cuda);
  trains("readme-full", "both directions: memories, SortCut, tied, dropouts", full_model(), 1, 2048);
  trains("examples-encoder-decoder", "4,096 tokens in, 4,096 out, which are counted", pair_model(), 1, 4096, "bf16",
         4096);
  trains("examples-8192", "8,192 tokens in buckets of 75", odd_bucket_model(), 1, 8192);
  trains("cpu", "0.83 M parameters, for a processor", cpu_model(), 8, 512, "f32", 0, Device::cpu);
  generates("cpu-generation", "the same, one stream behind 256 characters", cpu_model(), 1, 256, Device::cpu);
  for (BenchCase& each : all) {
    each.others = reference_of(each.name);
    each.attention_alone = each.name == "E-B16";
  }
  return all;
}

}  // namespace

const std::vector<BenchCase>& bench_cases() {
  static const std::vector<BenchCase> all = all_cases();
  return all;
}

std::vector<BenchCase> find_bench_cases(const std::string& name) {
  std::vector<std::string> names;
  std::vector<BenchCase> group;
  for (const BenchCase& each : bench_cases()) {
    if (each.name == name) return {each};
    if (each.name.starts_with(name + "-")) group.push_back(each);
    names.push_back(each.name);
  }
  if (!group.empty()) return group;
  const std::string near = nearest(name, names);
  fail<UsageError>("bench: unknown case ", to_text(name), near.empty() ? "" : "; did you mean " + near + "?",
                   " (--list shows them)");
}

BenchCase small_twin(const BenchCase& large) {
  BenchCase small = large;
  ModelConfig& m = small.model;
  const auto smaller = [](std::optional<std::int64_t>& option, std::int64_t value) {
    if (option) option = value;
  };
  m.num_tokens = 29;
  m.heads = 4;
  m.n_local_attn_heads = large.model.n_local_attn_heads == large.model.heads ? 4
                         : large.model.n_local_attn_heads > 0                ? 2
                                                                             : 0;
  m.dim = 32;
  smaller(m.dim_head, 12);
  smaller(m.emb_dim, 16);
  m.depth = std::min<std::int64_t>(m.depth, 2);
  m.bucket_size = 8;
  smaller(m.kv_bucket_size, 8);
  smaller(m.context_bucket_size, 8);
  m.ff_chunks = std::min<std::int64_t>(m.ff_chunks, 2);
  if (!m.pkm_layers.empty()) m.pkm_layers = {2};
  m.pkm_num_keys = 6;
  m.pkm_heads = 2;
  m.pkm_topk = 3;
  m.pkm_dim_head = 8;
  m.max_seq_len = 48;
  small.batch = std::min<std::int64_t>(large.batch, 2);
  small.length = large.kind == Kind::generation ? 19 : 48;
  small.source_length = large.has_encoder() ? 40 : 0;
  return small;
}

}  // namespace sinkhorn
