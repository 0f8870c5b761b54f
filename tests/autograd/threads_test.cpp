// Results do not depend on the number of threads: forward and backward give the same bits for 1, 2 and 4.
#include <gtest/gtest.h>

#include "autograd/parallel.h"
#include "tests/autograd/subjects.h"

namespace sinkhorn {
namespace {

using testing::forward_and_backward;
using testing::Subject;
using testing::subjects;

class Threads : public ::testing::TestWithParam<DType> {};

TEST_P(Threads, DoNotChangeABit) {
  const int before = threads();
  for (const Subject& subject : subjects()) {
    Tensors inputs;
    for (const Shape& shape : subject.inputs)
      inputs.push_back(uniform(Rng(inputs.size()), shape, -2, 2, DType::f64).to(GetParam()));
    set_threads(1);
    const Tensors one = forward_and_backward(inputs, subject.f);
    for (int count : {2, 4}) {
      set_threads(count);
      const Tensors many = forward_and_backward(inputs, subject.f);
      for (std::size_t i = 0; i < one.size(); ++i)
        EXPECT_TRUE(equal_bits(one[i], many[i])) << subject.name << ": result " << i << " on " << count << " threads";
    }
  }
  set_threads(before);
}

INSTANTIATE_TEST_SUITE_P(Types, Threads, ::testing::Values(DType::f32, DType::f64, DType::bf16), [](const auto& info) {
  std::ostringstream name;
  name << info.param;
  return name.str();
});

}  // namespace
}  // namespace sinkhorn
