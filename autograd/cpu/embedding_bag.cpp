#include "autograd/ops/embedding_bag.h"

#include <algorithm>

#include "autograd/cpu/reduce.h"
#include "autograd/cpu/segments.h"

namespace sinkhorn::kernels {

template <class T>
void EmbeddingBag<T>::forward(Cpu, const Bags& bags, const T* table, const T* weights, const std::int32_t* ids, T* y) {
  using R = Real<T>;
  const std::int64_t width = bags.width, size = bags.size;
  cpu::check_ids("embedding_bag", bags.rows, bags.bags * size, ids);
  parallel_for(bags.bags, grain_for(size * width), [=](std::int64_t begin, std::int64_t end) {
    std::vector<R> sum(std::size_t(bags.width));
    for (std::int64_t bag = begin; bag < end; ++bag) {
      std::fill(sum.begin(), sum.end(), R(0));
      for (std::int64_t k = bag * size; k < (bag + 1) * size; ++k) {
        const R weight = weights[k];
        const T* const row = table + ids[k] * width;
        for (std::int64_t j = 0; j < width; ++j) sum[j] += weight * R(row[j]);
      }
      std::copy_n(sum.begin(), width, y + bag * width);
    }
  });
}

namespace {

// A row that is picked more often than this is summed in pieces, so that a popular one is spread over the threads.
constexpr std::int64_t kPiece = 512;

template <class T>
void table_gradient(const Bags& bags, const T* weights, const std::int32_t* ids, const T* dy, Flow<T> dtable) {
  using R = Real<T>;
  const std::int64_t width = bags.width, size = bags.size, picks = bags.bags * size;
  const cpu::Segments segments = cpu::segments_of(bags.rows, picks, ids);
  // sum = the flow into one row from places begin .. end-1
  const auto add_up = [&segments, width, size, weights, dy](std::int64_t begin, std::int64_t end, R* sum) {
    std::fill_n(sum, width, R(0));
    for (std::int64_t i = begin; i < end; ++i) {
      const std::int64_t place = segments.places[i];
      const R weight = weights[place];
      const T* const flow = dy + place / size * width;
      for (std::int64_t j = 0; j < width; ++j) sum[j] += weight * R(flow[j]);
    }
  };
  const auto put = [=](std::int64_t v, const R* sum) {
    T* const row = dtable.to + v * width;
    for (std::int64_t j = 0; j < width; ++j) row[j] = dtable.adds ? R(row[j]) + sum[j] : sum[j];
  };
  const auto length = [&](std::int64_t v) { return segments.begins[v + 1] - segments.begins[v]; };
  const std::int64_t per_row = 1 + picks / std::max<std::int64_t>(bags.rows, 1);
  parallel_for(bags.rows, grain_for(per_row * width), [&](std::int64_t begin, std::int64_t end) {
    std::vector<R> sum(std::size_t(bags.width));
    for (std::int64_t v = begin; v < end; ++v) {
      if (length(v) > kPiece) continue;
      add_up(segments.begins[v], segments.begins[v + 1], sum.data());
      put(v, sum.data());
    }
  });

  struct Piece {
    std::int64_t row, begin, end;
  };
  std::vector<Piece> pieces;
  for (std::int64_t v = 0; v < bags.rows; ++v)
    if (length(v) > kPiece)
      for (std::int64_t at = segments.begins[v]; at < segments.begins[v + 1]; at += kPiece)
        pieces.push_back({v, at, std::min(at + kPiece, segments.begins[v + 1])});
  const Tensor partials({std::int64_t(pieces.size()), width}, dtype_of<R>);
  R* const partial = partials.data<R>();
  parallel_for(std::int64_t(pieces.size()), 1, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t p = begin; p < end; ++p) add_up(pieces[p].begin, pieces[p].end, partial + p * width);
  });
  for (std::size_t p = 0; p < pieces.size();) {
    const std::int64_t row = pieces[p].row;
    R* const sum = partial + std::int64_t(p) * width;
    for (++p; p < pieces.size() && pieces[p].row == row; ++p)
      for (std::int64_t j = 0; j < width; ++j) sum[j] += partial[std::int64_t(p) * width + j];
    put(row, sum);
  }
}

}  // namespace

template <class T>
void EmbeddingBag<T>::backward(Cpu, const Bags& bags, const T* table, const T* weights, const std::int32_t* ids,
                               const T* dy, Flow<T> dtable, T* dweights) {
  using R = Real<T>;
  if (dtable.to) table_gradient(bags, weights, ids, dy, dtable);
  if (dweights) {
    const std::int64_t width = bags.width, size = bags.size;
    parallel_for(bags.bags * size, grain_for(2 * width), [=](std::int64_t begin, std::int64_t end) {
      for (std::int64_t k = begin; k < end; ++k) {
        const T *flow = dy + k / size * width, *row = table + ids[k] * width;
        dweights[k] = cpu::row_sum<R>(width, [=](std::int64_t j) { return R(flow[j]) * R(row[j]); });
      }
    });
  }
}

template struct EmbeddingBag<float>;
template struct EmbeddingBag<double>;
template struct EmbeddingBag<bf16>;

}  // namespace sinkhorn::kernels
