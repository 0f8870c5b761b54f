// The stream that everything runs on, and the check that every call of CUDA goes through.
#pragma once
#include <cuda_runtime.h>

#include <string_view>

namespace sinkhorn::cuda {

/// The one stream. The first call sets the device up; a DeviceError if that fails.
cudaStream_t stream();

/// While it lives, stream() is another one for this thread: what is asked then becomes a part of a graph.
class OnStream {
 public:
  explicit OnStream(cudaStream_t stream);
  OnStream(const OnStream&) = delete;
  ~OnStream();

 private:
  cudaStream_t before_;
};

/// A DeviceError naming the op if a call did not succeed; OutOfMemory if that was the reason.
void check(std::string_view op, cudaError_t result);

/// What the device says of itself.
int attribute(std::string_view op, cudaDeviceAttr which);

/// After a launch. With SINKHORN_CUDA_WAIT=1 in the environment it waits for the kernel, so that an error inside it is
/// laid at the right door; otherwise such errors surface in a later call.
void check_launch(std::string_view op);

}  // namespace sinkhorn::cuda
