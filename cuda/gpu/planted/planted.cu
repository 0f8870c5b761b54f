// One bug per tool of compute-sanitizer, so that tools/gpu_check.sh can show that each tool finds what it is for.
#include <cuda_runtime.h>

#include <cstdio>
#include <cstring>

namespace {

__global__ void write_outside(int* x) { x[threadIdx.x + 1] = 1; }
__global__ void race(int* x) {
  __shared__ int shared[64];
  shared[threadIdx.x] = int(threadIdx.x);
  x[threadIdx.x] = shared[(threadIdx.x + 33) % 64];  // of another warp, and no barrier before
}
__global__ void read_unset(const int* x, int* y) { y[threadIdx.x] = x[threadIdx.x] + 1; }
__global__ void miss_a_barrier(int* x) {
  if (threadIdx.x < 40) __syncthreads();
  x[threadIdx.x] = 1;
}

}  // namespace

// planted memcheck | leak | racecheck | initcheck | synccheck
int main(int count, char** arguments) {
  const auto asked = [&](const char* name) { return count == 2 && std::strcmp(arguments[1], name) == 0; };
  int *x = nullptr, *y = nullptr;
  if (cudaMalloc(&x, 64 * sizeof(int)) != cudaSuccess || cudaMalloc(&y, 64 * sizeof(int)) != cudaSuccess) return 2;
  if (asked("memcheck"))
    write_outside<<<1, 64>>>(x);
  else if (asked("racecheck"))
    race<<<1, 64>>>(x);
  else if (asked("initcheck"))
    read_unset<<<1, 64>>>(x, y);
  else if (asked("synccheck"))
    miss_a_barrier<<<1, 64>>>(x);
  else if (!asked("leak"))
    return std::puts("planted: expected memcheck, leak, racecheck, initcheck or synccheck"), 2;
  cudaDeviceSynchronize();
  if (!asked("leak")) cudaFree(x);
  cudaFree(y);
  return 0;
}
