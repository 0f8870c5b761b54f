// Short ways to state tensors and errors in tests.
#pragma once
#include <gtest/gtest.h>

#include <cmath>
#include <initializer_list>
#include <string>
#include <vector>

#include "autograd/gradcheck.h"

namespace sinkhorn::testing {

/// An f64 tensor of these elements.
inline Tensor filled(Shape shape, const std::vector<double>& values) { return Tensor::from(values, shape); }

/// Every element within `tolerance` of the value; equal if it is 0.
inline void expect_values(const Var& got, const std::vector<double>& want, double tolerance = 0) {
  const std::vector<double> values = got.value.to_vector();
  ASSERT_EQ(values.size(), want.size()) << "shape " << got.shape();
  for (std::size_t i = 0; i < want.size(); ++i)
    EXPECT_TRUE(std::abs(values[i] - want[i]) <= tolerance)
        << "element " << i << ": " << values[i] << ", not " << want[i];
}

/// `f` throws an Error of kind E whose single line holds every one of `parts`.
template <class E = Error, class F>
void expect_error(F f, std::initializer_list<std::string> parts) {
  try {
    f();
    ADD_FAILURE() << "no error";
  } catch (const E& error) {
    const std::string message = error.what();
    EXPECT_EQ(message.find('\n'), std::string::npos) << message;
    for (const std::string& part : parts)
      EXPECT_NE(message.find(part), std::string::npos) << "no " << part << " in: " << message;
  }
}

}  // namespace sinkhorn::testing
