#include "cuda/blas.h"

#include <vector>

#include "autograd/cpu/gemm.h"
#include "autograd/memory.h"

namespace sinkhorn::cuda {
namespace {

template <class T>
std::vector<T> fetched(const T* device, std::int64_t count) {
  std::vector<T> host(std::size_t(count), T(0));
  Memory::download(Cuda{}, reinterpret_cast<const std::byte*>(device), reinterpret_cast<std::byte*>(host.data()),
                   host.size() * sizeof(T));
  return host;
}

}  // namespace

template <class T, class C>
void gemm(std::string_view, std::int64_t batch, std::int64_t m, std::int64_t n, std::int64_t k, bool transpose_a,
          bool transpose_b, const T* a, std::int64_t a_step, const T* b, std::int64_t b_step, Real<T> beta, C* c,
          std::int64_t c_step) {
  for (std::int64_t i = 0; i < batch; ++i) {
    const std::vector<T> lhs = fetched(a + i * a_step, m * k), rhs = fetched(b + i * b_step, k * n);
    std::vector<C> product = beta == 0 ? std::vector<C>(std::size_t(m * n), C(0)) : fetched(c + i * c_step, m * n);
    cpu::gemm(transpose_a, transpose_b, m, n, k, 1, lhs.data(), transpose_a ? m : k, rhs.data(), transpose_b ? k : n,
              beta, product.data(), n);
    Memory::upload(Cuda{}, reinterpret_cast<const std::byte*>(product.data()),
                   reinterpret_cast<std::byte*>(c + i * c_step), product.size() * sizeof(C));
  }
}

template void gemm(std::string_view, std::int64_t, std::int64_t, std::int64_t, std::int64_t, bool, bool, const float*,
                   std::int64_t, const float*, std::int64_t, float, float*, std::int64_t);
template void gemm(std::string_view, std::int64_t, std::int64_t, std::int64_t, std::int64_t, bool, bool, const double*,
                   std::int64_t, const double*, std::int64_t, double, double*, std::int64_t);
template void gemm(std::string_view, std::int64_t, std::int64_t, std::int64_t, std::int64_t, bool, bool, const bf16*,
                   std::int64_t, const bf16*, std::int64_t, float, bf16*, std::int64_t);
template void gemm(std::string_view, std::int64_t, std::int64_t, std::int64_t, std::int64_t, bool, bool, const bf16*,
                   std::int64_t, const bf16*, std::int64_t, float, float*, std::int64_t);

void allow_tf32(bool) {}  // the host multiplies in f32

}  // namespace sinkhorn::cuda
