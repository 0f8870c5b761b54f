// Wrong: forward divides the scores by sqrt(d), backward forgets that it did.
#include <algorithm>
#include <cmath>
#include <vector>

#include "notebooks/lessons/09_attention/exercise.h"

namespace sinkhorn::lesson {
namespace {

double dot(const double* a, const double* b, std::int64_t width) {
  double sum = 0;
  for (std::int64_t c = 0; c < width; ++c) sum += a[c] * b[c];
  return sum;
}

// The shares (T, S), row after row. What a query may not see has share 0.
std::vector<double> shares_of(const Tensor& q, const Tensor& k, bool causal) {
  const std::int64_t queries = q.shape()[0], keys = k.shape()[0], width = q.shape()[1];
  const double scale = 1 / std::sqrt(double(width));
  std::vector<double> shares(std::size_t(queries * keys));
  for (std::int64_t t = 0; t < queries; ++t) {
    double* const row = shares.data() + t * keys;
    const std::int64_t seen = causal ? t + 1 : keys;
    for (std::int64_t j = 0; j < seen; ++j)
      row[j] = scale * dot(q.data<double>() + t * width, k.data<double>() + j * width, width);
    const double largest = *std::max_element(row, row + seen);
    double sum = 0;
    for (std::int64_t j = 0; j < seen; ++j) sum += row[j] = std::exp(row[j] - largest);
    for (std::int64_t j = 0; j < seen; ++j) row[j] /= sum;
  }
  return shares;
}

}  // namespace

Tensor attention(const Tensor& q, const Tensor& k, const Tensor& v, bool causal) {
  const std::int64_t queries = q.shape()[0], keys = k.shape()[0], width = v.shape()[1];
  const std::vector<double> shares = shares_of(q, k, causal);
  Tensor y = Tensor::zeros({queries, width}, DType::f64);
  const auto value = v.span<double>(), out = y.span<double>();
  for (std::int64_t t = 0; t < queries; ++t)
    for (std::int64_t j = 0; j < keys; ++j)
      for (std::int64_t c = 0; c < width; ++c) out[t * width + c] += shares[t * keys + j] * value[j * width + c];
  return y;
}

// dv = P' dy;  dP = dy v';  dS = P (dP - <dP, P>), row by row;  dq = dS k / sqrt(d),  dk = dS' q / sqrt(d)
AttentionGradients attention_backward(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& dy,
                                      bool causal) {
  const std::int64_t queries = q.shape()[0], keys = k.shape()[0], width = q.shape()[1], value_width = v.shape()[1];
  const std::vector<double> shares = shares_of(q, k, causal);
  AttentionGradients flow{Tensor::zeros(q.shape(), DType::f64), Tensor::zeros(k.shape(), DType::f64),
                          Tensor::zeros(v.shape(), DType::f64)};
  double *dq = flow.dq.data<double>(), *dk = flow.dk.data<double>(), *dv = flow.dv.data<double>();
  std::vector<double> dshare(static_cast<std::size_t>(keys));
  for (std::int64_t t = 0; t < queries; ++t) {
    const double *share = shares.data() + t * keys, *incoming = dy.data<double>() + t * value_width;
    double mean = 0;
    for (std::int64_t j = 0; j < keys; ++j) {
      for (std::int64_t c = 0; c < value_width; ++c) dv[j * value_width + c] += share[j] * incoming[c];
      dshare[j] = dot(incoming, v.data<double>() + j * value_width, value_width);
      mean += share[j] * dshare[j];
    }
    for (std::int64_t j = 0; j < keys; ++j) {
      const double dscore = share[j] * (dshare[j] - mean);
      for (std::int64_t c = 0; c < width; ++c) {
        dq[t * width + c] += dscore * k.data<double>()[j * width + c];
        dk[j * width + c] += dscore * q.data<double>()[t * width + c];
      }
    }
  }
  return flow;
}

}  // namespace sinkhorn::lesson
