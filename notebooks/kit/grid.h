// Kernels in lessons: launches on the emulated grid that are counted, and what it says to a kernel that it stops.
#pragma once
#include <cstdint>
#include <sstream>
#include <string>
#include <string_view>
#include <vector>

#include "autograd/rng.h"
#include "cuda/emulator/array.h"
#include "notebooks/kit/checks.h"
#include "notebooks/kit/drawing.h"
#include "notebooks/kit/quiz.h"

namespace sinkhorn::lessons {

/// Uniform numbers in f32, for an emulator::Array.
inline std::vector<float> random_floats(const Rng& rng, std::int64_t count, double low = -2, double high = 2) {
  const Tensor values = uniform(rng, {count}, low, high);
  const auto span = values.span<float>();
  return {span.begin(), span.end()};
}

/// Launches a kernel and returns what it did, sectors too; lets a KernelFault through.
template <class Kernel>
emulator::Counters counted(std::string_view op, std::int64_t blocks, int threads, std::size_t shared_bytes,
                           const Kernel& kernel) {
  struct Counting {
    Counting() { emulator::count_sectors(true); }
    ~Counting() { emulator::count_sectors(false); }
  } const counting;
  emulator::reset_counters();
  cuda::launch(op, blocks, threads, shared_bytes, kernel);
  return emulator::counters();
}

/// What the emulated grid says to a kernel that it stops; empty if it lets it run to its end.
template <class Kernel>
std::string fault_of(std::string_view op, std::int64_t blocks, int threads, std::size_t shared_bytes,
                     const Kernel& kernel) {
  try {
    cuda::launch(op, blocks, threads, shared_bytes, kernel);
  } catch (const emulator::KernelFault& fault) {
    return fault.what();
  }
  return {};
}

/// Such a message as lines of a page, two spaces further in.
inline std::string fault_lines(const drawing::Style& style, std::string_view message) {
  drawing::Style narrower = style;
  narrower.columns -= 2;
  std::istringstream lines(drawing::wrap(narrower, message));
  std::string result;
  for (std::string line; std::getline(lines, line);)
    result += "  " + drawing::paint(style, drawing::Tone::bad, line) + "\n";
  return result;
}

/// What a kernel may cost: counts and their bounds, reported as one check whose detail has a line for each broken one.
class Budget {
 public:
  Budget& at_most(const std::string& what, std::int64_t got, std::int64_t most) {
    if (got > most) add(what + ": at most " + std::to_string(most) + ", counted " + std::to_string(got));
    return *this;
  }
  Budget& exactly(const std::string& what, std::int64_t got, std::int64_t want) {
    if (got != want) add(what + ": expected " + std::to_string(want) + ", counted " + std::to_string(got));
    return *this;
  }
  void report(Checks& checks, const std::string& name) const { checks.that(name, detail_.empty(), detail_); }

 private:
  void add(const std::string& line) { detail_ += (detail_.empty() ? "" : "\n") + line; }
  std::string detail_;
};

}  // namespace sinkhorn::lessons
