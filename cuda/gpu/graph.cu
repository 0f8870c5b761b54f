#include "autograd/graph.h"
#include "cuda/gpu/check.h"

namespace sinkhorn {

using cuda::check;

struct Graph::Recording {
  ~Recording() {
    if (graph) cudaGraphDestroy(graph);
    if (executable) cudaGraphExecDestroy(executable);
  }
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t executable = nullptr;
  std::size_t nodes = 0;
};

// "Relaxed", so that the pool may ask the driver for memory meanwhile.
std::shared_ptr<const Graph::Recording> Graph::record(const std::function<void()>& work) {
  auto recording = std::make_shared<Recording>();
  check("graph", cudaStreamBeginCapture(cuda::stream(), cudaStreamCaptureModeRelaxed));
  try {
    work();
  } catch (...) {
    cudaStreamEndCapture(cuda::stream(), &recording->graph);
    cudaGetLastError();  // the first error is the one to tell
    throw;
  }
  check("graph", cudaStreamEndCapture(cuda::stream(), &recording->graph));
  check("graph", cudaGraphGetNodes(recording->graph, nullptr, &recording->nodes));
  check("graph", cudaGraphInstantiate(&recording->executable, recording->graph, 0));
  check("graph", cudaGraphUpload(recording->executable, cuda::stream()));
  return recording;
}

void Graph::launch() const {
  require_not_recording("graph");
  check("graph", cudaGraphLaunch(recording_->executable, cuda::stream()));
  arena_.repeat(peak_);
}

std::int64_t Graph::size() const { return std::int64_t(recording_->nodes); }

}  // namespace sinkhorn
