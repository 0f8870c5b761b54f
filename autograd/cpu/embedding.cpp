#include "autograd/ops/embedding.h"

#include <algorithm>

#include "autograd/cpu/segments.h"
#include "autograd/parallel.h"

namespace sinkhorn::kernels {

template <class T>
void Embedding<T>::forward(Cpu, std::int64_t rows, std::int64_t width, std::int64_t count, const T* table,
                           const std::int32_t* ids, T* y) {
  cpu::check_ids("embedding", rows, count, ids);
  parallel_for(count, grain_for(width), [=](std::int64_t begin, std::int64_t end) {
    for (std::int64_t i = begin; i < end; ++i) std::copy_n(table + ids[i] * width, width, y + i * width);
  });
}

// Each chunk owns some columns and walks all ids in order, so that a frequent id costs no more than others; sums are in
// f64, since one row may collect thousands of terms.
template <class T>
void Embedding<T>::backward(Cpu, std::int64_t rows, std::int64_t width, std::int64_t count, const std::int32_t* ids,
                            const T* dy, T* dtable) {
  parallel_for(width, 32, [=](std::int64_t begin, std::int64_t end) {
    const std::int64_t columns = end - begin;
    const Tensor sums = Tensor::zeros({rows, columns}, DType::f64);
    double* const sum = sums.data<double>();
    for (std::int64_t i = 0; i < count; ++i) {
      double* const into = sum + ids[i] * columns;
      const T* from = dy + i * width + begin;
      for (std::int64_t j = 0; j < columns; ++j) into[j] += Real<T>(from[j]);
    }
    for (std::int64_t row = 0; row < rows; ++row)
      for (std::int64_t j = 0; j < columns; ++j) dtable[row * width + begin + j] = Real<T>(sum[row * columns + j]);
  });
}

template struct Embedding<float>;
template struct Embedding<double>;
template struct Embedding<bf16>;

}  // namespace sinkhorn::kernels
