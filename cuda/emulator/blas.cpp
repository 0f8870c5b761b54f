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
void gemm(std::string_view, const Gemm<T, C>& p) {
  const std::int64_t m = p.m, n = p.n, k = p.k;
  for (std::int64_t i = 0; i < p.batch; ++i) {
    const std::vector<T> lhs = fetched(p.a + i * p.a_step, m * k), rhs = fetched(p.b + i * p.b_step, k * n);
    // As on a GPU all is added up before it is rounded.
    std::vector<Real<C>> sums(std::size_t(m * n), 0);
    if (p.beta != 0) {
      const std::vector<C> c = fetched((p.c ? p.c : p.d) + i * p.d_step, m * n);
      for (std::size_t at = 0; at < c.size(); ++at) sums[at] = Real<C>(p.beta) * Real<C>(c[at]);
    }
    if (p.bias) {
      const std::vector<C> bias = fetched(p.bias, n);
      for (std::size_t at = 0; at < sums.size(); ++at) sums[at] += Real<C>(bias[at % std::size_t(n)]);
    }
    cpu::gemm(p.transpose_a, p.transpose_b, m, n, k, p.alpha, lhs.data(), p.transpose_a ? m : k, rhs.data(),
              p.transpose_b ? k : n, 1, sums.data(), n);
    const std::vector<C> result(sums.begin(), sums.end());
    Memory::upload(Cuda{}, reinterpret_cast<const std::byte*>(result.data()),
                   reinterpret_cast<std::byte*>(p.d + i * p.d_step), result.size() * sizeof(C));
  }
}

template void gemm(std::string_view, const Gemm<float, float>&);
template void gemm(std::string_view, const Gemm<double, double>&);
template void gemm(std::string_view, const Gemm<bf16, bf16>&);
template void gemm(std::string_view, const Gemm<bf16, float>&);

void allow_tf32(bool) {}  // the host multiplies in f32

}  // namespace sinkhorn::cuda
