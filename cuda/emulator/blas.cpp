#include "cuda/blas.h"

#include <algorithm>
#include <vector>

#include "autograd/cpu/gemm.h"
#include "cuda/emulator/emulator.h"

namespace sinkhorn::cuda {
namespace {

using emulator::detail::on_host;

template <class T>
std::vector<T> fetched(const T* device, std::int64_t count) {
  const T* host = on_host(device);
  return std::vector<T>(host, host + count);
}

template <class T, class C>
void multiply(const Gemm<T, C>& p) {
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
    std::copy(sums.begin(), sums.end(), on_host(p.d + i * p.d_step));
  }
}

}  // namespace

template <class T, class C>
void gemm(std::string_view, const Gemm<T, C>& p) {
  emulator::detail::run_or_record([p] { multiply(p); });
}

void library_gemm(std::string_view op, const Gemm<float, float>& p) { gemm(op, p); }

template void gemm(std::string_view, const Gemm<float, float>&);
template void gemm(std::string_view, const Gemm<double, double>&);
template void gemm(std::string_view, const Gemm<bf16, bf16>&);
template void gemm(std::string_view, const Gemm<bf16, float>&);

void allow_tf32(bool) {}  // the host multiplies in f32
bool allows_tf32() { return false; }

}  // namespace sinkhorn::cuda
