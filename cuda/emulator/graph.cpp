#include "autograd/graph.h"

#include "cuda/emulator/emulator.h"

namespace sinkhorn {

// Launches as closures over their kernels.
struct Graph::Recording {
  emulator::detail::Launches launches;
};

std::shared_ptr<const Graph::Recording> Graph::record(const std::function<void()>& work) {
  auto recording = std::make_shared<Recording>();
  emulator::detail::recording = &recording->launches;
  try {
    work();
  } catch (...) {
    emulator::detail::recording = nullptr;
    throw;
  }
  emulator::detail::recording = nullptr;
  return recording;
}

void Graph::launch() const {
  require_not_recording("graph");
  for (const auto& launch : recording_->launches) launch();
  arena_.repeat(peak_);
}

std::int64_t Graph::size() const { return std::int64_t(recording_->launches.size()); }

}  // namespace sinkhorn
