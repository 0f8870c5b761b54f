// CUDA devices: which ones there are, or why none can be used. Answers in every build, with and without CUDA.
#pragma once
#include <cstddef>
#include <string>
#include <vector>

namespace sinkhorn::cuda {

struct Device {
  std::string name;
  int compute_major = 0, compute_minor = 0;
  int multiprocessors = 0;
  std::size_t memory = 0;       ///< bytes
  std::size_t free_memory = 0;  ///< bytes that nobody uses; 0 if unknown
};

struct Probe {
  std::vector<Device> devices;  ///< in CUDA's order; empty if none is usable
  std::string reason;           ///< why `devices` is empty: one line without a full stop
  std::string runtime, driver;  ///< CUDA version this build has, and the newest one the driver takes; empty if unknown
  std::string blas;             ///< version of cuBLAS; empty in a build without CUDA
};

/// Whether tensors can lie on Device::cuda: on a GPU, or in a build without CUDA on the emulated one.
bool is_usable();

/// Asks the driver. Never throws: a build without CUDA or a machine without a driver gives a reason instead.
Probe probe();

}  // namespace sinkhorn::cuda
