// Time that the device takes: two events on its stream on a GPU, the steady clock elsewhere.
#pragma once
#include <memory>

#include "autograd/dtype.h"

namespace sinkhorn::cuda {

/// A stopwatch. On a GPU it is two events on the stream that everything runs on, so it counts from when the device
/// reaches the start to when it has done all that was asked before the stop, with the gaps in which it waits for the
/// host. On the CPU, and on the emulated device, calls return when they are done, and the host's clock says the same.
class Timer {
 public:
  explicit Timer(sinkhorn::Device device);
  ~Timer();
  Timer(const Timer&) = delete;

  /// Waits until the device has nothing left to do, then starts.
  void start();
  /// Milliseconds since the start; waits until the device is done. A DeviceError if something failed there.
  double stop();

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace sinkhorn::cuda
