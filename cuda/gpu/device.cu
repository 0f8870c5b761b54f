#include <cuda_runtime.h>

#include "cuda/device.h"

namespace sinkhorn::cuda {
namespace {

/// 13000 -> "13.0"; CUDA gives 0 where there is no driver.
std::string version(int number) {
  return number == 0 ? "" : std::to_string(number / 1000) + "." + std::to_string(number % 1000 / 10);
}

}  // namespace

Probe probe() {
  Probe found;
  int runtime = 0, driver = 0, count = 0;
  if (cudaRuntimeGetVersion(&runtime) == cudaSuccess) found.runtime = version(runtime);
  if (cudaDriverGetVersion(&driver) == cudaSuccess) found.driver = version(driver);
  const cudaError_t counted = cudaGetDeviceCount(&count);
  for (int id = 0; counted == cudaSuccess && id < count; ++id) {
    cudaDeviceProp properties;
    if (cudaGetDeviceProperties(&properties, id) != cudaSuccess) continue;
    found.devices.push_back({.name = properties.name,
                             .compute_major = properties.major,
                             .compute_minor = properties.minor,
                             .multiprocessors = properties.multiProcessorCount,
                             .memory = properties.totalGlobalMem});
  }
  if (found.driver.empty()) {
    found.reason = "no NVIDIA driver is loaded";
  } else if (counted != cudaSuccess) {
    found.reason = cudaGetErrorString(counted);
  } else if (found.devices.empty()) {
    found.reason = "the driver shows no GPU";
  }
  cudaGetLastError();  // a failed probe must not surface in a later, unrelated call
  return found;
}

}  // namespace sinkhorn::cuda
