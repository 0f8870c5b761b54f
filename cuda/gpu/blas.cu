#include <cublas_v2.h>

#include "cuda/blas.h"
#include "cuda/gpu/check.h"
#include "cuda/launch.h"
#include "cuda/runtime.h"

namespace sinkhorn::cuda {
namespace {

void check_blas(std::string_view op, cublasStatus_t status) {
  if (status != CUBLAS_STATUS_SUCCESS) fail<DeviceError>(op, ": cuBLAS says: ", cublasGetStatusString(status));
}

// A workspace of our own: with one stream and a fixed workspace cuBLAS gives the same bits in every run.
class Blas {
 public:
  static cublasHandle_t handle() {
    static const Blas one;
    return one.handle_;
  }
  static void allow_tf32(bool allowed) {
    constexpr unsigned sums = CUBLAS_MATH_DISALLOW_REDUCED_PRECISION_REDUCTION;  // none in bf16
    const unsigned products = allowed ? CUBLAS_TF32_TENSOR_OP_MATH : CUBLAS_DEFAULT_MATH;
    check_blas("cuBLAS", cublasSetMathMode(handle(), cublasMath_t(products | sums)));
  }

 private:
  Blas() : workspace_(workspace({kBytes}, DType::boolean)) {
    const cudaStream_t on = stream();  // also sets CUBLAS_WORKSPACE_CONFIG
    check_blas("cuBLAS", cublasCreate(&handle_));
    check_blas("cuBLAS", cublasSetStream(handle_, on));
    check_blas("cuBLAS", cublasSetWorkspace(handle_, workspace_.raw(), workspace_.bytes()));
    // No TF32 in f32, and no sums in bf16.
    check_blas("cuBLAS", cublasSetMathMode(handle_, cublasMath_t(CUBLAS_DEFAULT_MATH |
                                                                 CUBLAS_MATH_DISALLOW_REDUCED_PRECISION_REDUCTION)));
  }
  ~Blas() { cublasDestroy(handle_); }

  static constexpr std::int64_t kBytes = 32 << 20;  // what cuBLAS recommends for Hopper
  Tensor workspace_;
  cublasHandle_t handle_ = nullptr;
};

template <class T>
constexpr cudaDataType_t type_of = std::is_same_v<T, double>  ? CUDA_R_64F
                                   : std::is_same_v<T, float> ? CUDA_R_32F
                                                              : CUDA_R_16BF;
template <class T>
constexpr cublasComputeType_t compute_in = std::is_same_v<T, double> ? CUBLAS_COMPUTE_64F : CUBLAS_COMPUTE_32F;

}  // namespace

// cuBLAS reads column by column. A row-major (rows, columns) matrix read so is its transpose, (columns, rows), with the
// same distance between lines. So it is asked for C' = op(B)' op(A)': the operands change places, m and n with them,
// and what comes out, written column by column, is C row by row. Whether an operand is transposed stays as it is,
// because both sides of "transposed" were turned.
template <class T, class C>
void gemm(std::string_view op, std::int64_t batch, std::int64_t m, std::int64_t n, std::int64_t k, bool transpose_a,
          bool transpose_b, const T* a, std::int64_t a_step, const T* b, std::int64_t b_step, Real<T> beta, C* c,
          std::int64_t c_step) {
  if (batch == 0 || m == 0 || n == 0) return;
  if (k == 0) {
    if (beta != 0) return;
    for (std::int64_t i = 0; i < batch; ++i) clear(c + i * c_step, std::size_t(m * n) * sizeof(C));
    return;
  }
  const Real<T> one = 1;
  const auto flag = [](bool transpose) { return transpose ? CUBLAS_OP_T : CUBLAS_OP_N; };
  check_blas(op, cublasGemmStridedBatchedEx_64(Blas::handle(), flag(transpose_b), flag(transpose_a), n, m, k, &one, b,
                                               type_of<T>, transpose_b ? k : n, b_step, a, type_of<T>,
                                               transpose_a ? m : k, a_step, &beta, c, type_of<C>, n, c_step, batch,
                                               compute_in<T>, CUBLAS_GEMM_DEFAULT));
}

template void gemm(std::string_view, std::int64_t, std::int64_t, std::int64_t, std::int64_t, bool, bool, const float*,
                   std::int64_t, const float*, std::int64_t, float, float*, std::int64_t);
template void gemm(std::string_view, std::int64_t, std::int64_t, std::int64_t, std::int64_t, bool, bool, const double*,
                   std::int64_t, const double*, std::int64_t, double, double*, std::int64_t);
template void gemm(std::string_view, std::int64_t, std::int64_t, std::int64_t, std::int64_t, bool, bool, const bf16*,
                   std::int64_t, const bf16*, std::int64_t, float, bf16*, std::int64_t);
template void gemm(std::string_view, std::int64_t, std::int64_t, std::int64_t, std::int64_t, bool, bool, const bf16*,
                   std::int64_t, const bf16*, std::int64_t, float, float*, std::int64_t);

void allow_tf32(bool allowed) { Blas::allow_tf32(allowed); }

}  // namespace sinkhorn::cuda
