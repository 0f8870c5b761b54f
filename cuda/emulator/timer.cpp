#include "cuda/timer.h"

#include "cuda/host_clock.h"
#include "cuda/runtime.h"

namespace sinkhorn::cuda {

struct Timer::State {
  sinkhorn::Device device;
  HostClock host;
};

Timer::Timer(sinkhorn::Device device) : state_(std::make_unique<State>(State{device, {}})) {}
Timer::~Timer() = default;

void Timer::start() {
  if (state_->device == sinkhorn::Device::cuda) wait();
  state_->host.start();
}

double Timer::stop() {
  if (state_->device == sinkhorn::Device::cuda) wait();
  return state_->host.stop();
}

}  // namespace sinkhorn::cuda
