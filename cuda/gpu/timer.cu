#include "cuda/gpu/check.h"
#include "cuda/host_clock.h"
#include "cuda/runtime.h"
#include "cuda/timer.h"

namespace sinkhorn::cuda {

struct Timer::State {
  sinkhorn::Device device;
  HostClock host;
  cudaEvent_t begin = nullptr, end = nullptr;  // on a GPU
};

Timer::Timer(sinkhorn::Device device) : state_(new State{device, {}}) {
  if (device != sinkhorn::Device::cuda) return;
  stream();
  check("timer", cudaEventCreate(&state_->begin));
  check("timer", cudaEventCreate(&state_->end));
}

Timer::~Timer() {
  if (state_->begin) cudaEventDestroy(state_->begin);
  if (state_->end) cudaEventDestroy(state_->end);
}

void Timer::start() {
  if (state_->device != sinkhorn::Device::cuda) return state_->host.start();
  wait();
  check("timer", cudaEventRecord(state_->begin, stream()));
}

double Timer::stop() {
  if (state_->device != sinkhorn::Device::cuda) return state_->host.stop();
  check("timer", cudaEventRecord(state_->end, stream()));
  wait();
  float milliseconds = 0;
  check("timer", cudaEventElapsedTime(&milliseconds, state_->begin, state_->end));
  return milliseconds;
}

}  // namespace sinkhorn::cuda
