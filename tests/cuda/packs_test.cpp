// Kernels that move memory in packs of 16 bytes: widths that are no multiple of a pack, ends that fill none, and
// operands that begin between two of them.
#include <gtest/gtest.h>

#include "autograd/memory.h"
#include "autograd/ops.h"
#include "autograd/optimizer.h"
#include "tests/autograd/expect.h"
#include "tests/autograd/subjects.h"
#include "tests/cuda/agreement.h"

namespace sinkhorn {
namespace {

using testing::forward_and_backward;
using testing::Function;
using testing::Guarded;
using testing::limit_of;
using testing::squared_error;

// x on the device, `offset` elements behind the beginning of a buffer.
Tensor shifted(const Tensor& x, std::int64_t offset) {
  const Tensor buffer = Tensor::zeros({x.count() + offset}, x.dtype(), Device::cuda);
  Tensor place = buffer.slice(offset, offset + x.count()).reshape(x.shape());
  place.assign(x);
  return place;
}

// Output and gradients of f on the device agree with f64 on the CPU, wherever the inputs begin; outputs stand between
// guards.
void agrees(const std::string& name, DType dtype, const Tensors& inputs, const Function& f) {
  Tensors wide;
  for (const Tensor& x : inputs) wide.push_back(x.to(DType::f64));
  const Tensors exact = forward_and_backward(wide, f), on_cpu = forward_and_backward(inputs, f);
  SCOPED_TRACE(name);
  for (const std::int64_t offset : {0, 1, 8}) {
    Tensors there, results;
    for (const Tensor& x : inputs) there.push_back(shifted(x, offset));
    {
      const Guarded guarded;
      for (const Tensor& y : forward_and_backward(there, f)) results.push_back(y ? y.to(Device::cpu) : y);
    }
    ASSERT_EQ(results.size(), exact.size());
    for (std::size_t i = 0; i < exact.size(); ++i)
      // Where one op's rounding is magnified by the next, the CPU's own error says by how much.
      EXPECT_LE(squared_error(results[i], exact[i]), std::max(limit_of(dtype), 2 * squared_error(on_cpu[i], exact[i])))
          << name << " in " << dtype << ", offset " << offset << ", result " << i;
  }
}

class PacksOnDevice : public ::testing::TestWithParam<DType> {
 protected:
  void SetUp() override { SINKHORN_NEEDS_DEVICE(); }
  static Tensor drawn(std::uint64_t key, Shape shape) {
    return uniform(Rng(key), shape, -2, 2, DType::f64).to(GetParam());
  }
  static Tensors drawn(std::initializer_list<Shape> shapes) {
    Tensors inputs;
    for (const Shape& shape : shapes) inputs.push_back(drawn(std::uint64_t(inputs.size()), shape));
    return inputs;
  }
};

// Below, at and above the widths of a pack, of a warp's packs, and of what a warp holds of a row.
constexpr std::int64_t kWidths[] = {1, 3, 8, 12, 63, 64, 72, 128, 130, 256, 264, 520, 1000, 1032, 2056};

TEST_P(PacksOnDevice, MapsOfEveryLengthAgreeWithTheCpu) {
  for (const std::int64_t count : {1, 7, 8, 9, 31, 1000, 4099}) {
    const Shape one{count};
    agrees("gelu", GetParam(), drawn({one}), [](auto x) { return gelu(x[0]); });
    agrees("scale", GetParam(), drawn({one}), [](auto x) { return scale(x[0], 3, 0.5); });
    agrees("add", GetParam(), drawn({one, one}), [](auto x) { return x[0] + x[1]; });
    agrees("mul", GetParam(), drawn({one, one}), [](auto x) { return x[0] * x[1]; });
    agrees("dropout", GetParam(), drawn({one}), [](auto x) { return dropout(x[0], 0.3, Rng(5)); });
  }
}

TEST_P(PacksOnDevice, RowsOfEveryWidthAgreeWithTheCpu) {
  for (const std::int64_t width : kWidths) {
    const Shape rows{37, width};
    const auto named = [&](const char* op) { return std::string(op) + " of width " + std::to_string(width); };
    agrees(named("broadcasting"), GetParam(), drawn({rows, {width}, {37, 1}, {}}),
           [](auto x) { return (x[0] + x[1]) * x[2] + x[3]; });
    agrees(named("gated_gelu"), GetParam(), drawn({{37, 2 * width}}), [](auto x) { return gated_gelu(x[0]); });
    agrees(named("permute"), GetParam(), drawn({{3, 5, 4, width}}), [](auto x) { return permute(x[0], {2, 0, 1, 3}); });
    agrees(named("sums"), GetParam(), drawn({rows}), [](auto x) { return sum(x[0], 0) * sum(sum(x[0], 1)); });
    agrees(named("mask_fill"), GetParam(), drawn({rows}), [=](auto x) {
      const Tensor allowed = Draw(Rng(6)).mask(rows).to(x[0].value.device());
      return mask_fill(x[0], allowed, -1);
    });
    agrees(named("embedding"), GetParam(), drawn({{11, width}}),
           [=](auto x) { return embedding(x[0], integers(Rng(7), {50}, 11).to(x[0].value.device())); });
    agrees(named("cross_entropy"), GetParam(), drawn({rows}), [=](auto x) {
      const Device device = x[0].value.device();
      const Tensor targets = integers(Rng(8), {37}, std::int32_t(width)).to(device);
      return cross_entropy(x[0], targets, Draw(Rng(9)).mask({37}).to(device)).loss;
    });
    if (width == 1) continue;  // what is left there of x - mean is rounding
    agrees(named("layer_norm"), GetParam(), drawn({rows, {width}, {width}}),
           [](auto x) { return layer_norm(x[0], x[1], x[2]); });
    if (GetParam() != DType::f32) continue;
    const auto stored = forward_and_backward(drawn({rows, {width}, {width}}),
                                             [](auto x) { return layer_norm(x[0], x[1], x[2], 1e-5, DType::bf16); });
    Tensors there;
    for (const Tensor& x : drawn({rows, {width}, {width}})) there.push_back(shifted(x, 4));
    const auto got =
        forward_and_backward(there, [](auto x) { return layer_norm(x[0], x[1], x[2], 1e-5, DType::bf16); });
    for (std::size_t i = 0; i < stored.size(); ++i)
      EXPECT_LE(squared_error(got[i], stored[i]), i == 0 ? 1e-5 : 1e-12) << named("layer_norm to bf16") << ", " << i;
  }
}

TEST_P(PacksOnDevice, ManyRowsAreSummedInChunks) {
  agrees("layer_norm", GetParam(), drawn({{3000, 64}, {64}, {64}}),
         [](auto x) { return layer_norm(x[0], x[1], x[2]); });
  agrees("sum of columns", GetParam(), drawn({{2, 1000, 264}}), [](auto x) { return sum(x[0], 1); });
  agrees("sum of columns, ragged", GetParam(), drawn({{2, 1000, 37}}), [](auto x) { return sum(x[0], 1); });
  agrees("sum of everything", GetParam(), drawn({{3, 9000}}), [](auto x) { return sum(x[0]); });
  agrees("sum of rows", GetParam(), drawn({{3, 9000}}), [](auto x) { return sum(x[0], 1); });
}

// The gradient of GELU is made and summed in one pass; the results are those of two.
TEST_P(PacksOnDevice, LinearGeluHasTheBitsOfTheComposedForm) {
  const DType parameters = GetParam() == DType::bf16 ? DType::f32 : GetParam();
  for (const std::int64_t width : {5, 24, 64, 200, 264}) {
    const Tensor x = drawn(1, {700, 24}).to(Device::cuda),
                 weight = drawn(2, {width, 24}).to(parameters).to(Device::cuda),
                 bias = drawn(3, {width}).to(parameters).to(Device::cuda);
    for (const std::int64_t offset : {0, 1}) {
      const Tensor dy = shifted(drawn(4, {700, width}), offset);
      const auto results = [&](auto f) {
        const Guarded guarded;
        const Tape tape = Tape::record();
        const Var leaf = tape.leaf(x), w = tape.leaf(weight), b = tape.leaf(bias), y = f(leaf, w, b);
        const Gradients flows = tape.backward(y, dy);
        return Tensors{y.value, flows.of(leaf), flows.of(w), flows.of(b)};
      };
      const Tensors fused = results([](auto... in) { return linear_gelu(in...); });
      const Tensors composed = results([](auto... in) { return gelu(linear(in...)); });
      for (std::size_t i = 0; i < fused.size(); ++i)
        EXPECT_TRUE(equal_bits(fused[i], composed[i]))
            << "width " << width << ", offset " << offset << ", result " << i;
    }
  }
}

TEST_P(PacksOnDevice, SummariesOfEveryWidthAgreeWithTheCpu) {
  const Tensor mask = Draw(Rng(3)).mask({2, 40});
  for (const std::int64_t width : {1, 5, 8, 24, 300})
    for (const Summary kind :
         {Summary::mean_at_first, Summary::value_at_first, Summary::sum_of_means, Summary::mean, Summary::sum})
      for (const bool masked : {false, true})
        agrees("summary " + std::to_string(int(kind)) + " of width " + std::to_string(width), GetParam(),
               drawn({{2, 40, 2, 3, width}}), [=](auto x) {
                 return bucket_summary(x[0], kind, 4, 1, 1, masked ? mask.to(x[0].value.device()) : Tensor(),
                                       kind != Summary::mean && kind != Summary::sum);
               });
}

// More buckets than one stretch of a column has, and not a multiple.
TEST_P(PacksOnDevice, SummariesOfManyBucketsAgreeWithTheCpu) {
  const Tensor mask = Draw(Rng(3)).mask({2, 600});
  for (const Summary kind : {Summary::mean_at_first, Summary::sum_of_means})
    for (const bool masked : {false, true})
      agrees("summary " + std::to_string(int(kind)), GetParam(), drawn({{2, 600, 2, 3}}), [=](auto x) {
        return bucket_summary(x[0], kind, 2, 0, 0, masked ? mask.to(x[0].value.device()) : Tensor());
      });
}

TEST_P(PacksOnDevice, GradientsAreAddedWhereverTheyBegin) {
  for (const std::int64_t offset : {0, 3}) {
    const Tensor into = shifted(drawn(1, {1003}), offset), term = drawn(2, {1003});
    const Tensor want = add(drawn(1, {1003}), term).value;
    dispatch(into, [&]<class T>(auto space) {
      kernels::Accumulate<T>::forward(space, into.count(), term.to(Device::cuda).data<T>(), into.data<T>());
    });
    EXPECT_TRUE(equal_bits(into, want)) << offset;
    into.fill(-3);
    EXPECT_EQ(into.to_vector(), std::vector<double>(1003, -3));
  }
}

TEST_P(PacksOnDevice, AdamWOfSlicesAgreesWithTheCpu) {
  for (const std::int64_t offset : {0, 1}) {
    // More borders than a kernel takes at once, few of them multiples of a pack.
    std::vector<Range> decayed;
    for (std::int64_t at = 2; at < 4000; at += 27) decayed.push_back({at, at + 13});
    const auto stepped = [&](Device device) {
      const auto placed = [&](const Tensor& x) { return device == Device::cpu ? x.clone() : shifted(x, offset); };
      const Tensor value = placed(drawn(1, {4099})), m = placed(drawn(2, {4099})),
                   v = placed(square(drawn(3, {4099})).value), g = placed(drawn(4, {4099}));
      const Tensor clip = clip_factor(square_sum({g}), 7);
      adamw_step({0.9, 0.99, 1e-8, 0.1}, 3, 0.3, value, g, m, v, decayed, 0.5, clip);
      return Tensors{value, m, v, clip};
    };
    const Tensors cpu = stepped(Device::cpu), cuda = stepped(Device::cuda);
    for (std::size_t i = 0; i < cpu.size(); ++i)
      EXPECT_LE(squared_error(cuda[i], cpu[i]), limit_of(GetParam())) << "offset " << offset << ", result " << i;
  }
}

INSTANTIATE_TEST_SUITE_P(Types, PacksOnDevice, ::testing::Values(DType::f32, DType::f64, DType::bf16),
                         [](const auto& info) {
                           std::ostringstream name;
                           name << info.param;
                           return name.str();
                         });

}  // namespace
}  // namespace sinkhorn
