// What `sinkhorn bench` measures: one table of cases.
#pragma once
#include <string>
#include <vector>

#include "autograd/dtype.h"
#include "models/config.h"

namespace sinkhorn {

/// Tokens per second of others at a case, measured on an H100 80GB HBM3 with PyTorch 2.11; 0: not measured.
struct BenchReference {
  double package = 0;  // the published package, sinkhorn_transformer 0.11.4
  double dense = 0;    // a GPT of the same width and depth, with FlashAttention and torch.compile
};

struct BenchCase {
  enum class Kind {
    training,   // optimizer steps on batch x length tokens
    generation  // tokens of `batch` streams, each behind `length` characters of context
  };
  std::string name, purpose;
  ModelConfig model;
  Kind kind = Kind::training;
  std::string precision = "f32";
  std::int64_t batch = 1, length = 0;
  std::int64_t source_length = 0;  // an encoder reads so many tokens of each row; 0: there is no encoder
  Device device = Device::cuda;    // what it is made for

  BenchReference others = {};
  bool attention_alone = false;  // is timed, too (tools/bench_attention.h)

  bool has_encoder() const { return source_length > 0; }
};

/// In the order in which they run.
const std::vector<BenchCase>& bench_cases();

/// The case of this name, or all whose names begin with it and a dash ("generation" is generation-512,
/// generation-512-B64 and generation-8000). Throws UsageError with the nearest name if there is none.
std::vector<BenchCase> find_bench_cases(const std::string& name);

/// The same kind of model, so small that its gradients are compared with the CPU's f64 in a moment: every option that
/// chooses what is computed stays.
BenchCase small_twin(const BenchCase& large);

}  // namespace sinkhorn
