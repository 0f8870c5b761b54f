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

namespace {

__global__ void set_condition(cudaGraphConditionalHandle handle, const std::int32_t* word) {
  cudaGraphSetConditional(handle, *word != 0);
}

// A stream that is there for what one part of a graph records.
class PartStream {
 public:
  PartStream() { check("graph", cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking)); }
  PartStream(const PartStream&) = delete;
  ~PartStream() { cudaStreamDestroy(stream_); }
  operator cudaStream_t() const { return stream_; }

 private:
  cudaStream_t stream_ = nullptr;
};

// Where the stream's recording stands: the graph, and the nodes that the next one waits for.
struct Front {
  explicit Front(cudaStream_t stream) {
    cudaStreamCaptureStatus status;
    check("graph", cudaStreamGetCaptureInfo(stream, &status, nullptr, &graph, &nodes, &edges, &count));
  }
  cudaGraph_t graph;
  const cudaGraphNode_t* nodes;
  const cudaGraphEdgeData* edges;
  std::size_t count;
};

}  // namespace

// A conditional node behind a kernel that sets its condition. Its body is recorded on a stream of its own.
void Graph::record_part(const std::int32_t* word, const std::function<void()>& work) {
  const cudaStream_t whole = cuda::stream();
  cudaGraphConditionalHandle handle;
  check("graph", cudaGraphConditionalHandleCreate(&handle, Front(whole).graph, 0, cudaGraphCondAssignDefault));
  set_condition<<<1, 1, 0, whole>>>(handle, word);
  check("graph", cudaGetLastError());
  const Front front(whole);
  cudaGraphNodeParams node = {};
  node.type = cudaGraphNodeTypeConditional;
  node.conditional.handle = handle;
  node.conditional.type = cudaGraphCondTypeIf;
  node.conditional.size = 1;
  cudaGraphNode_t added = nullptr;
  check("graph", cudaGraphAddNode(&added, front.graph, front.nodes, front.edges, front.count, &node));
  check("graph", cudaStreamUpdateCaptureDependencies(whole, &added, nullptr, 1, cudaStreamSetCaptureDependencies));

  const PartStream part;
  cudaGraph_t body = node.conditional.phGraph_out[0];
  check("graph", cudaStreamBeginCaptureToGraph(part, body, nullptr, nullptr, 0, cudaStreamCaptureModeRelaxed));
  try {
    const cuda::OnStream here(part);
    work();
  } catch (...) {
    cudaStreamEndCapture(part, &body);
    throw;
  }
  check("graph", cudaStreamEndCapture(part, &body));
}

void Graph::launch() const {
  require_not_recording("graph");
  check("graph", cudaGraphLaunch(recording_->executable, cuda::stream()));
  arena_.repeat(peak_);
}

std::int64_t Graph::size() const { return std::int64_t(recording_->nodes); }

}  // namespace sinkhorn
