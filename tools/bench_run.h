// One case of `sinkhorn bench`: checked, warmed up, timed.
#pragma once
#include <functional>
#include <map>
#include <optional>

#include "tools/bench_cases.h"
#include "tools/bench_check.h"
#include "tools/flops.h"
#include "tools/trainer.h"

namespace sinkhorn {

/// How fast the device multiplies matrices: what no model can exceed by much. Measured when first asked for.
class MatmulCeiling {
 public:
  /// Products are of `edge` x `edge` matrices; 0: 8192 on a GPU, 1024 on the CPU.
  explicit MatmulCeiling(std::int64_t edge = 0) : edge_(edge) {}

  /// FLOP/s in a precision (f32, tf32, bf16): the fastest of several products, since others can only slow them down.
  double measure(Device device, const std::string& precision);

  struct Figure {
    Device device;
    std::string precision;
    std::int64_t edge;
    double flops_per_second;
  };
  const std::vector<Figure>& figures() const { return figures_; }

 private:
  std::int64_t edge_;
  std::vector<Figure> figures_;
};

struct BenchSettings {
  std::int64_t steps = 10;     // timed ones
  double slow_step_ms = 5000;  // of steps slower than this there are `slow_steps`
  std::int64_t slow_steps = 3;
  std::optional<double> peak_flops_per_second = {};  // of the device; none: the ceiling of products
  BenchTamper tamper = {};                           // done to the small model that is checked before
  std::function<void(const std::string& doing)> progress = {};
};

/// How a case ended.
enum class BenchOutcome { measured, out_of_memory, disagrees, non_finite };

struct BenchResult {
  BenchCase at;
  BenchOutcome outcome = BenchOutcome::measured;
  std::string note;  // why there are no figures, or fewer
  std::int64_t parameters = 0, warmup_steps = 0;
  std::int64_t tokens = 0;           // in a sample: of a step, or generated
  std::vector<double> milliseconds;  // of every sample
  StepFlops flops;                   // of a sample
  double peak = 0, ceiling = 0;      // FLOP/s: of the device, and of its matrix products in this precision
  double first_loss = 0, last_loss = 0;
  double host_ms = 0;          // of a sample, on average, in which this program did not wait for the device
  std::size_t pool_bytes = 0;  // most that tensors held in timed steps
  std::optional<std::size_t> driver_bytes =
      {};  // in use on the GPU afterwards, by anybody; the pool gives nothing back

  double waited = 0;  // share of the timed steps in which this program's threads were ready, but had no processor

  bool was_measured() const { return outcome == BenchOutcome::measured; }
  double median_ms() const;
  /// Half the distance between the quartiles, as a share of the median.
  double spread() const;
  double tokens_per_second() const { return 1000 * double(tokens) / median_ms(); }
  /// Model FLOPs utilisation (needed operations) and hardware FLOPs utilisation (executed ones).
  double mfu() const { return utilisation(flops.needed, peak); }
  double hfu() const { return utilisation(flops.executed, peak); }
  double mfu_of_ceiling() const { return utilisation(flops.needed, ceiling); }
  double hfu_of_ceiling() const { return utilisation(flops.executed, ceiling); }
  /// Why these figures say little, a line each: a busy machine, or a ceiling that was exceeded.
  std::vector<std::string> doubts() const;

 private:
  double utilisation(double operations, double of) const { return 1000 * operations / median_ms() / of; }
};

/// Checks a small model of the same kind, and then warms up and times the case on a device. A case that disagrees is
/// not timed; running out of memory and a loss that is not finite are outcomes, other errors are thrown.
BenchResult run_bench_case(const BenchCase& at, Device device, MatmulCeiling& ceiling, const BenchSettings& settings);

/// The value in the middle, or between the two in the middle; `part` 0.25 and 0.75 are the quartiles, interpolated.
double quantile(std::vector<double> values, double part = 0.5);

/// Nanoseconds for which this program's threads have been ready to run while others had the processors, in all; 0 where
/// the system does not count them.
double waited_for_processor();

/// What the case's steps are trained with, and on.
TrainConfig bench_training(const BenchCase& at);
Batch bench_batch(const BenchCase& at);
/// The type of a generating model's parameters.
DType bench_dtype(const std::string& precision);

}  // namespace sinkhorn
