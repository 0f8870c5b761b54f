#include <cublasLt.h>

#include <algorithm>
#include <array>
#include <map>
#include <mutex>

#include "autograd/memory.h"
#include "cuda/blas.h"
#include "cuda/gpu/check.h"
#include "cuda/planes_gemm.h"
#include "cuda/runtime.h"

namespace sinkhorn::cuda {
namespace {

void check_blas(std::string_view op, cublasStatus_t status) {
  if (status != CUBLAS_STATUS_SUCCESS) fail<DeviceError>(op, ": cuBLAS says: ", cublasLtGetStatusString(status));
}

template <class T>
constexpr cudaDataType_t type_of = std::is_same_v<T, double>  ? CUDA_R_64F
                                   : std::is_same_v<T, float> ? CUDA_R_32F
                                                              : CUDA_R_16BF;

// All that the choice of an algorithm may depend on.
struct Problem {
  cudaDataType_t operand, result;
  cublasComputeType_t compute;
  std::int64_t m, n, k, batch, a_step, b_step, d_step;
  bool transpose_a, transpose_b, bias, beta, in_place;
  std::uint32_t align_a, align_b, align_c, align_d;  // bytes

  std::array<std::int64_t, 19> key() const {
    return {operand,     result,      compute, m,    n,        k,       batch,   a_step,  b_step, d_step,
            transpose_a, transpose_b, bias,    beta, in_place, align_a, align_b, align_c, align_d};
  }
};

// How one product is asked for. Made once per problem and never given back: a run has few shapes.
struct Plan {
  cublasLtMatmulDesc_t product = nullptr;
  cublasLtMatrixLayout_t first = nullptr, second = nullptr, result = nullptr;
  cublasLtMatmulAlgo_t algorithm{};
};

// The same of a transposition.
struct Turn {
  cublasLtMatrixTransformDesc_t how = nullptr;
  cublasLtMatrixLayout_t from = nullptr, to = nullptr;
};

template <class Value>
void set(cublasLtMatmulDesc_t product, cublasLtMatmulDescAttributes_t attribute, const Value& value) {
  check_blas("cuBLAS", cublasLtMatmulDescSetAttribute(product, attribute, &value, sizeof(Value)));
}

cublasLtMatrixLayout_t layout(cudaDataType_t type, std::int64_t rows, std::int64_t columns, std::int64_t batch,
                              std::int64_t step) {
  cublasLtMatrixLayout_t made = nullptr;
  check_blas("cuBLAS", cublasLtMatrixLayoutCreate(&made, type, std::uint64_t(rows), std::uint64_t(columns), rows));
  const auto count = std::int32_t(batch);
  check_blas("cuBLAS",
             cublasLtMatrixLayoutSetAttribute(made, CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT, &count, sizeof(count)));
  check_blas("cuBLAS",
             cublasLtMatrixLayoutSetAttribute(made, CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET, &step, sizeof(step)));
  return made;
}

bool tf32_is_allowed = false;

// A workspace of our own and one algorithm per problem, the heuristic's first, which follows from the problem and the
// device alone: with one stream that gives the same bits in every run. Partial sums of a split product are added in the
// type of computation, by a kernel of its own: in no order of arrival, and not in bf16.
class Blas {
 public:
  static Blas& the() {
    static Blas one;
    return one;
  }

  static cublasComputeType_t compute_in(cudaDataType_t operand) {
    if (operand == CUDA_R_64F) return CUBLAS_COMPUTE_64F;
    return operand == CUDA_R_32F && tf32_is_allowed ? CUBLAS_COMPUTE_32F_FAST_TF32 : CUBLAS_COMPUTE_32F;
  }

  void multiply(std::string_view op, const Problem& problem, const void* alpha, const void* a, const void* b,
                const void* beta, const void* c, void* d, const void* bias) {
    std::lock_guard lock(mutex_);
    auto [place, is_new] = plans_.try_emplace(problem.key());
    if (is_new) {
      try {
        place->second = plan(op, problem);
      } catch (...) {
        plans_.erase(place);
        throw;
      }
    }
    const Plan& plan = place->second;
    if (bias) set(plan.product, CUBLASLT_MATMUL_DESC_BIAS_POINTER, bias);
    // The operands change places: see gemm().
    check_blas(op, cublasLtMatmul(handle_, plan.product, alpha, b, plan.first, a, plan.second, beta, c, plan.result, d,
                                  plan.result, &plan.algorithm, workspace_.raw(), workspace_.bytes(), stream()));
  }

  // y (columns, rows) = the transposed x (rows, columns).
  void transpose(std::string_view op, std::int64_t rows, std::int64_t columns, const float* x, float* y) {
    std::lock_guard lock(mutex_);
    auto place = turns_.find({rows, columns});
    if (place == turns_.end()) {
      Turn turn;
      check_blas(op, cublasLtMatrixTransformDescCreate(&turn.how, CUDA_R_32F));
      const cublasOperation_t transposed = CUBLAS_OP_T;
      check_blas(op, cublasLtMatrixTransformDescSetAttribute(turn.how, CUBLASLT_MATRIX_TRANSFORM_DESC_TRANSA,
                                                             &transposed, sizeof(transposed)));
      turn.from = layout(CUDA_R_32F, columns, rows, 1, 0);
      turn.to = layout(CUDA_R_32F, rows, columns, 1, 0);
      place = turns_.emplace(std::array<std::int64_t, 2>{rows, columns}, turn).first;
    }
    const Turn& turn = place->second;
    const float one = 1, zero = 0;
    check_blas(op, cublasLtMatrixTransform(handle_, turn.how, &one, x, turn.from, &zero, nullptr, nullptr, y, turn.to,
                                           stream()));
  }

 private:
  Blas() : workspace_(workspace({kBytes}, DType::boolean)) {
    stream();
    check_blas("cuBLAS", cublasLtCreate(&handle_));
  }
  ~Blas() { cublasLtDestroy(handle_); }

  Plan plan(std::string_view op, const Problem& p) {
    Plan plan;
    const cudaDataType_t scale = p.operand == CUDA_R_64F ? CUDA_R_64F : CUDA_R_32F;
    check_blas(op, cublasLtMatmulDescCreate(&plan.product, p.compute, scale));
    set(plan.product, CUBLASLT_MATMUL_DESC_TRANSA, p.transpose_b ? CUBLAS_OP_T : CUBLAS_OP_N);
    set(plan.product, CUBLASLT_MATMUL_DESC_TRANSB, p.transpose_a ? CUBLAS_OP_T : CUBLAS_OP_N);
    if (p.bias) set(plan.product, CUBLASLT_MATMUL_DESC_EPILOGUE, CUBLASLT_EPILOGUE_BIAS);
    plan.first = layout(p.operand, p.transpose_b ? p.k : p.n, p.transpose_b ? p.n : p.k, p.batch, p.b_step);
    plan.second = layout(p.operand, p.transpose_a ? p.m : p.k, p.transpose_a ? p.k : p.m, p.batch, p.a_step);
    plan.result = layout(p.result, p.n, p.m, p.batch, p.d_step);

    cublasLtMatmulPreference_t preference = nullptr;
    check_blas(op, cublasLtMatmulPreferenceCreate(&preference));
    const auto prefer = [&](cublasLtMatmulPreferenceAttributes_t attribute, auto value) {
      check_blas(op, cublasLtMatmulPreferenceSetAttribute(preference, attribute, &value, sizeof(value)));
    };
    prefer(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, std::uint64_t(kBytes));
    prefer(CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, std::uint32_t(CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE));
    prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, p.align_b);
    prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, p.align_a);
    prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, p.align_c);
    prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, p.align_d);
    cublasLtMatmulHeuristicResult_t found{};
    int count = 0;
    const cublasStatus_t status = cublasLtMatmulAlgoGetHeuristic(
        handle_, plan.product, plan.first, plan.second, plan.result, plan.result, preference, 1, &found, &count);
    cublasLtMatmulPreferenceDestroy(preference);
    check_blas(op, status);
    check_blas(op, count == 0 ? CUBLAS_STATUS_NOT_SUPPORTED : found.state);
    plan.algorithm = found.algo;
    return plan;
  }

  static constexpr std::int64_t kBytes = 32 << 20;  // what cuBLAS recommends for Hopper
  Tensor workspace_;
  cublasLtHandle_t handle_ = nullptr;
  std::mutex mutex_;
  std::map<std::array<std::int64_t, 19>, Plan> plans_;
  std::map<std::array<std::int64_t, 2>, Turn> turns_;  // by rows and columns
};

// The largest power of two that divides an address, as far as an algorithm could care.
std::uint32_t alignment(const void* p) {
  std::uint32_t bytes = 256;
  while (reinterpret_cast<std::uintptr_t>(p) % bytes != 0) bytes /= 2;
  return bytes;
}

// Tensor cores take TF32 only where numbers that are summed over lie side by side, so a B that is not transposed is
// turned within the product, again and again: 175 and 220 us for the gradients of E-B4's inputs of 1,536 and 2,048
// columns. Turned before, it pays where the sum is long and many rows share B.
bool should_turn(const Gemm<float, float>& p) { return !p.transpose_b && p.batch == 1 && p.k > p.n && p.m >= 4 * p.k; }

// cuBLAS reads column by column. A row-major (rows, columns) matrix read so is its transpose, (columns, rows), with the
// same distance between lines. So it is asked for D' = op(B)' op(A)': the operands change places, m and n with them,
// and what comes out, written column by column, is D row by row. Whether an operand is transposed stays as it is,
// because both sides of "transposed" were turned. Its bias has one element per row of D', which is a column of D.
template <class T, class C>
void multiply(std::string_view op, const Gemm<T, C>& p) {
  if (p.batch == 0 || p.m == 0 || p.n == 0) return;
  const C* c = p.c ? p.c : p.d;
  // An empty sum is a product over one column of zeros, so that alpha, beta, and bias mean the same.
  if (p.k == 0) {
    const Tensor zeros = workspace({std::max(p.m, p.n)}, dtype_of<T>);
    clear(zeros.raw(), zeros.bytes());
    Gemm<T, C> same = p;
    same.a = same.b = zeros.data<T>();
    same.a_step = same.b_step = 0;
    same.k = 1;
    return multiply(op, same);
  }
  // Vectors are read 16 bytes at a time.
  if (p.bias && alignment(p.bias) < 16) {
    const Tensor aligned = workspace({p.n}, dtype_of<C>);
    Memory::copy(Cuda{}, reinterpret_cast<const std::byte*>(p.bias), aligned.raw(), aligned.bytes());
    Gemm<T, C> same = p;
    same.bias = aligned.data<C>();
    return multiply(op, same);
  }
  Blas& blas = Blas::the();
  if constexpr (std::is_same_v<T, float>)
    if (tf32_is_allowed && should_turn(p)) {
      const Tensor turned = workspace({p.n, p.k}, DType::f32);
      blas.transpose(op, p.k, p.n, p.b, turned.data<float>());
      Gemm<T, C> same = p;
      same.b = turned.data<float>();
      same.transpose_b = true;
      return multiply(op, same);
    }
  const Problem problem{type_of<T>,
                        type_of<C>,
                        blas.compute_in(type_of<T>),
                        p.m,
                        p.n,
                        p.k,
                        p.batch,
                        p.a_step,
                        p.b_step,
                        p.d_step,
                        p.transpose_a,
                        p.transpose_b,
                        bool(p.bias),
                        p.beta != 0,
                        c == p.d,
                        alignment(p.a),
                        alignment(p.b),
                        alignment(c),
                        alignment(p.d)};
  blas.multiply(op, problem, &p.alpha, p.a, p.b, &p.beta, c, p.d, p.bias);
}

}  // namespace

template <class T, class C>
void gemm(std::string_view op, const Gemm<T, C>& p) {
  if constexpr (std::is_same_v<T, float>)
    if (!tf32_is_allowed && PlanesGemm::pays(p) && PlanesGemm::is_here())
      return PlanesGemm::multiply(op, p, PlanesGemm::pieces_of(p));
  multiply(op, p);
}

void library_gemm(std::string_view op, const Gemm<float, float>& p) { multiply(op, p); }

template void gemm(std::string_view, const Gemm<float, float>&);
template void gemm(std::string_view, const Gemm<double, double>&);
template void gemm(std::string_view, const Gemm<bf16, bf16>&);
template void gemm(std::string_view, const Gemm<bf16, float>&);

void allow_tf32(bool allowed) { tf32_is_allowed = allowed; }
bool allows_tf32() { return tf32_is_allowed; }

}  // namespace sinkhorn::cuda
