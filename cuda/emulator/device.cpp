#include "cuda/device.h"

#include <filesystem>

namespace sinkhorn::cuda {

bool is_usable() { return true; }

Probe probe() {
  std::error_code ignored;
  const bool gpu = std::filesystem::exists("/dev/nvidia0", ignored);
  return {.devices = {},
          .reason =
              gpu ? "this build has no CUDA, though the machine has a GPU: install nvcc and build with SINKHORN_CUDA=ON"
                  : "this build has no CUDA",
          .runtime = {},
          .driver = {},
          .blas = {}};
}

}  // namespace sinkhorn::cuda
