// Work on Device::cuda that is recorded once and then repeated at the price of one launch: a CUDA graph.
#pragma once
#include <cstdint>
#include <functional>
#include <memory>
#include <string_view>

#include "autograd/pool.h"

namespace sinkhorn {

/// What a function asks of Device::cuda (kernels, products, copies within the device): recording does none of it, and
/// each launch() does all of it again, in the same order and with the same arguments, so that results are those of the
/// function to the bit. The contract:
///   - Shapes and all that the host decides are fixed by the recording. What changes between launches is read by
///     kernels from tensors that stand outside and are written to before a launch: ids, positions, step words, learning
///     rates. Those tensors live as long as the graph, and hold their results too, unless the function hands tensors
///     out.
///   - What the function allocates lies in the arena, and keeps its place. A tensor that it hands out holds what the
///     last launch wrote. Graphs of one arena work in the same memory, one after the other, as launches come.
///   - Nothing may wait, nor cross between host and device, while recording: an Error. The same work should have run
///     plainly once before, so that what is made at first use (plans of products) is there, and blocks in the pool.
///   - Meanwhile no other thread asks anything of the device.
class Graph {
 public:
  /// The arena must outlive the graph.
  Graph(const Arena& arena, const std::function<void()>& work);

  void launch() const;
  /// Kernels, copies and fills of a launch.
  std::int64_t size() const;

  /// Whether programs may use graphs: at first they may, unless the environment has SINKHORN_CUDA_GRAPHS=0, or
  /// SINKHORN_CUDA_WAIT=1, which waits after every kernel to name the one that failed.
  static bool are_enabled();
  static void enable(bool on);
  /// An Error that names the op, if this thread records.
  static void require_not_recording(std::string_view op);

 private:
  struct Recording;  // of a GPU, or of the emulated grid
  static std::shared_ptr<const Recording> record(const std::function<void()>& work);

  const Arena& arena_;
  std::shared_ptr<const Recording> recording_;
  std::size_t peak_ = 0;  // bytes of the arena
};

}  // namespace sinkhorn
