#include "autograd/graph.h"

#include <algorithm>
#include <atomic>
#include <cstdlib>

#include "autograd/error.h"
#include "autograd/noise.h"

namespace sinkhorn {
namespace {

thread_local bool is_recording = false;

bool is_set_to(const char* variable, std::string_view value) {
  const char* const set = std::getenv(variable);
  return set && value == set;
}

std::atomic<bool>& enabled() {
  static std::atomic<bool> on = !is_set_to("SINKHORN_CUDA_GRAPHS", "0") && !is_set_to("SINKHORN_CUDA_WAIT", "1");
  return on;
}

}  // namespace

Graph::Graph(const Arena& arena, const std::function<void()>& work) : arena_(arena) {
  require_not_recording("graph");
  const Arena::Use use(arena);
  arena.reset_peak();
  is_recording = true;
  try {
    recording_ = record(work);
  } catch (...) {
    is_recording = false;
    throw;
  }
  is_recording = false;
  peak_ = arena.peak();
}

bool Graph::are_enabled() { return enabled(); }
void Graph::enable(bool on) { enabled() = on; }

void Graph::require_not_recording(std::string_view op) {
  if (is_recording)
    fail(op, ": a graph is being recorded, so the host may neither wait nor copy from or to the device; do it before");
}

std::vector<Switch> draw_switches(const Rng& rng, std::int64_t count, double rate) {
  const RandomBits bits = rng.bits();
  std::vector<Switch> switches(static_cast<std::size_t>(count));
  for (std::size_t i = 0; i < switches.size(); ++i) switches[i].on = bits.uniform<double>(i) >= rate;
  if (std::none_of(switches.begin(), switches.end(), [](const Switch& s) { return s.on; }) && count > 0)
    switches[0].on = true;
  if (!bits.device_step) return switches;
  const Tensor words({count}, DType::i32, Device::cuda);
  kernels::SwitchWords::forward(Cuda{}, count, rate, bits, words.data<std::int32_t>());
  for (std::int64_t i = 0; i < count; ++i) switches[std::size_t(i)].word = words.slice(i, i + 1);
  return switches;
}

void when(const Switch& runs, const std::function<void()>& work) {
  if (is_recording && runs.word) return Graph::record_part(runs.word.data<std::int32_t>(), work);
  if (runs.on) work();
}

}  // namespace sinkhorn
