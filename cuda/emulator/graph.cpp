#include "autograd/graph.h"

#include <utility>

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

void Graph::record_part(const std::int32_t* word, const std::function<void()>& work) {
  emulator::detail::Launches part, *const whole = std::exchange(emulator::detail::recording, &part);
  try {
    work();
  } catch (...) {
    emulator::detail::recording = whole;
    throw;
  }
  emulator::detail::recording = whole;
  whole->push_back([word, part = std::move(part)] {
    if (*emulator::detail::on_host(word) == 0) return;
    for (const auto& launch : part) launch();
  });
}

void Graph::launch() const {
  require_not_recording("graph");
  for (const auto& launch : recording_->launches) launch();
  arena_.repeat(peak_);
}

std::int64_t Graph::size() const { return std::int64_t(recording_->launches.size()); }

}  // namespace sinkhorn
