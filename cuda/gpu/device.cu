#include <cublasLt.h>
#include <cuda_runtime.h>

#include "cuda/device.h"

namespace sinkhorn::cuda {
namespace {

/// 13000 -> "13.0"; CUDA gives 0 where there is no driver.
std::string version(int number) {
  return number == 0 ? "" : std::to_string(number / 1000) + "." + std::to_string(number % 1000 / 10);
}

// Needs a context on the device, which stays.
std::size_t free_memory_of(int id) {
  int before = 0;
  std::size_t free = 0, total = 0;
  if (cudaGetDevice(&before) != cudaSuccess || cudaSetDevice(id) != cudaSuccess) return 0;
  const bool known = cudaMemGetInfo(&free, &total) == cudaSuccess;
  cudaSetDevice(before);
  return known ? free : 0;
}

// Of the library that is loaded; no handle, and so no GPU, is needed.
std::string blas_version() {
  int parts[3] = {};
  constexpr libraryPropertyType names[] = {MAJOR_VERSION, MINOR_VERSION, PATCH_LEVEL};
  for (int i = 0; i < 3; ++i)
    if (cublasLtGetProperty(names[i], &parts[i]) != CUBLAS_STATUS_SUCCESS) return "";
  return std::to_string(parts[0]) + "." + std::to_string(parts[1]) + "." + std::to_string(parts[2]);
}

}  // namespace

bool is_usable() {
  static const bool found = !probe().devices.empty();
  return found;
}

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
                             .memory = properties.totalGlobalMem,
                             .free_memory = free_memory_of(id)});
  }
  if (found.driver.empty()) {
    found.reason = "no NVIDIA driver is loaded";
  } else if (counted != cudaSuccess) {
    found.reason = cudaGetErrorString(counted);
  } else if (found.devices.empty()) {
    found.reason = "the driver shows no GPU";
  }
  found.blas = blas_version();
  cudaGetLastError();  // a failed probe must not surface in a later, unrelated call
  return found;
}

}  // namespace sinkhorn::cuda
