// Work on Device::cuda that is recorded once and then repeated at the price of one launch: a CUDA graph.
#pragma once
#include <cstdint>
#include <functional>
#include <memory>
#include <string_view>
#include <vector>

#include "autograd/pool.h"
#include "autograd/rng.h"

namespace sinkhorn {

/// Whether a part of some work is done: the host's word for plain launches, and the same on the device for graphs.
struct Switch {
  bool on = true;
  /// i32 (1), 0 or not: kernels that stand before the part write it. Empty: the host's word stands, in graphs too.
  Tensor word = {};
};

/// What a function asks of Device::cuda (kernels, products, copies within the device): recording does none of it, and
/// each launch() does all of it again, in the same order and with the same arguments, so that results are those of the
/// function to the bit. The contract:
///   - Shapes and all that the host decides are fixed by the recording. What changes between launches is read by
///     kernels from tensors that stand outside and are written to before a launch: ids, positions, step words, learning
///     rates. Those tensors live as long as the graph, and hold their results too, unless the function hands tensors
///     out.
///   - What the function allocates lies in the arena, and keeps its place. A tensor that it hands out holds what the
///     last launch wrote. Graphs of one arena work in the same memory, one after the other, as launches come.
///   - What some launches do and others leave out stands in `when`.
///   - Nothing may wait, nor cross between host and device, while recording: an Error. The same work should have run
///     plainly once before, so that what is made at first use (plans of products) is there, and blocks in the pool.
///   - Meanwhile no other thread asks anything of the device.
class Graph {
 public:
  /// The arena must outlive the graph.
  Graph(const Arena& arena, const std::function<void()>& work);

  void launch() const;
  /// Kernels, copies and fills of a launch; what stands in a `when` counts as one or two, run or not.
  std::int64_t size() const;

  /// Whether programs may use graphs: at first they may, unless the environment has SINKHORN_CUDA_GRAPHS=0, or
  /// SINKHORN_CUDA_WAIT=1, which waits after every kernel to name the one that failed.
  static bool are_enabled();
  static void enable(bool on);
  /// An Error that names the op, if this thread records.
  static void require_not_recording(std::string_view op);

 private:
  friend void when(const Switch& runs, const std::function<void()>& work);
  struct Recording;  // of a GPU, or of the emulated grid
  static std::shared_ptr<const Recording> record(const std::function<void()>& work);
  /// Within record(): what `work` asks for becomes a part that a launch does if *word is not 0 by then.
  static void record_part(const std::int32_t* word, const std::function<void()>& work);

  const Arena& arena_;
  std::shared_ptr<const Recording> recording_;
  std::size_t peak_ = 0;  // bytes of the arena
};

/// Switches that are each off with probability `rate`, by element i of the stream, except that the first stays on where
/// all would be off. With a stream whose step word lies on the device, their words are drawn there, too.
std::vector<Switch> draw_switches(const Rng& rng, std::int64_t count, double rate);

/// Does `work` if the switch is on. While a graph is recorded, `work` becomes a part of it that each launch does or
/// leaves out, as the word says by then; so the host runs `work` whatever the word may be, and what `work` hands on
/// must lie, in either case, in tensors from outside.
void when(const Switch& runs, const std::function<void()>& work);

}  // namespace sinkhorn
