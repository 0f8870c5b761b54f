#include "autograd/graph.h"

#include <atomic>
#include <cstdlib>

#include "autograd/error.h"

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

}  // namespace sinkhorn
