// Every op on the device against the CPU, forward and backward, in every type: the cases of its gradient check, and
// large shapes. Buffers stand between guard words and hold NaN at first.
#include <gtest/gtest.h>

#include <cstdio>
#include <cstdlib>
#include <optional>

#include "autograd/gradcheck.h"
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
using testing::Subject;
using testing::subjects;

// Counts what `compare` compares, each output or gradient once, and says so at the end of the program. All tests of
// OnDevice together make at least kLeast; with only some of them, whatever they make is right.
class Comparisons : public ::testing::Environment {
 public:
  static constexpr int kLeast = 2000, kTests = 12;  // four tests in three types
  void TearDown() override {
    if (made > 0) std::printf("%d comparisons of CUDA with the CPU and with f64, in %d tests\n", made, tests);
    EXPECT_TRUE(tests < kTests || made >= kLeast) << made << " comparisons, expected at least " << kLeast;
  }
  int made = 0, tests = 0;
};
Comparisons& comparisons = *static_cast<Comparisons*>(::testing::AddGlobalTestEnvironment(new Comparisons));

Tensors moved(const Tensors& tensors, Device device) {
  Tensors result;
  for (const Tensor& x : tensors) result.push_back(x ? x.to(device) : x);
  return result;
}

// Runs f in `dtype` on both devices and in f64, from the same numbers, and compares output and gradients.
void compare(const std::string& name, DType dtype, const Tensors& inputs, const Function& f) {
  const Tensors on_cpu = forward_and_backward(inputs, f);
  Tensors wide;
  for (const Tensor& x : inputs) wide.push_back(x && is_floating(x.dtype()) ? x.to(DType::f64) : x);
  const Tensors exact = forward_and_backward(wide, f);
  std::optional<Guarded> guarded(std::in_place);
  const Tensors on_device = moved(forward_and_backward(moved(inputs, Device::cuda), f), Device::cpu);
  // The emulated grid has but one order in which to run.
  const Tensors again =
      testing::is_emulated() ? on_device : moved(forward_and_backward(moved(inputs, Device::cuda), f), Device::cpu);
  guarded.reset();
  const auto is = [&](const char* part) { return name.find(part) != name.npos; };
  const testing::Arithmetic arithmetic = is("attention")                ? testing::Arithmetic::attention
                                         : is("matmul") || is("linear") ? testing::Arithmetic::matrix_product
                                                                        : testing::Arithmetic::elementwise;
  for (std::size_t i = 0; i < exact.size(); ++i) {
    const std::string what = name + (i == 0 ? ", output" : ", gradient of input " + std::to_string(i - 1));
    ++comparisons.made;
    EXPECT_EQ(bool(on_device[i]), bool(exact[i])) << what;
    if (!on_device[i] || !exact[i]) continue;
    EXPECT_EQ(on_device[i].dtype(), on_cpu[i].dtype()) << what;
    EXPECT_TRUE(equal_bits(on_device[i], again[i])) << what << ": two runs differ";
    const double error = squared_error(on_device[i], exact[i]), of_cpu = squared_error(on_cpu[i], exact[i]);
    // Where rounding of the input is magnified, the CPU's own error says by how much.
    EXPECT_TRUE(error <= limit_of(dtype, arithmetic) || error <= 2 * of_cpu)
        << what << " in " << dtype << ": squared error " << error << " (CPU: " << of_cpu << ")";
  }
}

// How often each case is drawn: once where that takes its time, on the emulated grid or under a tool (SINKHORN_DRAWS).
const std::size_t kDraws = std::getenv("SINKHORN_DRAWS") ? std::strtoul(std::getenv("SINKHORN_DRAWS"), nullptr, 10)
                           : testing::is_emulated()      ? 1
                                                         : 3;

class OnDevice : public ::testing::TestWithParam<DType> {
 protected:
  void SetUp() override {
    SINKHORN_NEEDS_DEVICE();
    ++comparisons.tests;
  }
};

TEST_P(OnDevice, CasesOfEveryOpAgreeWithTheCpu) {
  for (const OpCheck& check : all_op_checks()) {
    // A cast's types are its own, and a chain holds its parameters itself: gradcheck_test.cpp has both in f64.
    if (GetParam() != DType::f64 && (check.name == "cast" || check.name == "reversible_chain")) continue;
    int number = 0;
    const std::vector<AnyCase> cases = check.cases();
    for (std::size_t drawing = 0; drawing < cases.size() * kDraws; ++drawing) {
      const AnyCase& at = cases[drawing % cases.size()];
      Draw draw(Rng(std::uint64_t(100 + ++number)));
      const Tensors drawn = at.inputs(draw);
      // Only floating inputs become leaves; the others stay constants.
      Tensors inputs, constants;
      std::vector<int> places;
      for (std::size_t k = 0; k < drawn.size(); ++k) {
        const bool varies = drawn[k] && is_floating(drawn[k].dtype());
        constants.push_back(varies ? Tensor() : drawn[k]);
        if (!varies) continue;
        // The weights of routing are stored in f32 or better, whatever attention computes in.
        const bool is_weight = check.name == "bucketed_attention" && k == 2;
        inputs.push_back(drawn[k].to(is_weight ? wide(GetParam()) : GetParam()));
        places.push_back(int(k));
      }
      compare(std::string(check.name) + " (" + at.label + ")", GetParam(), inputs, [&](std::span<const Var> x) {
        std::vector<Var> all;
        for (const Tensor& constant : constants)
          all.emplace_back(constant ? constant.to(x[0].value.device()) : constant);
        for (std::size_t k = 0; k < places.size(); ++k) all[std::size_t(places[k])] = x[k];
        return at.apply(all);
      });
    }
  }
}

TEST_P(OnDevice, LargeShapesAgreeWithTheCpu) {
  for (const Subject& subject : subjects()) {
    Tensors inputs;
    for (const Shape& shape : subject.inputs)
      inputs.push_back(uniform(Rng(inputs.size()), shape, -2, 2, DType::f64).to(GetParam()));
    compare(subject.name, GetParam(), inputs, subject.f);
  }
}

// Widths beside and beyond warps and blocks, no rows, one element, more rows than 2^16.
TEST_P(OnDevice, OddShapesAgreeWithTheCpu) {
  struct Rows {
    std::int64_t rows, width;
  };
  std::vector<Rows> shapes{{0, 5}, {1, 1}, {3, 31}, {2, 33}, {5, 255}, {3, 257}, {2, 1025}};
  if (!testing::is_emulated()) shapes.insert(shapes.end(), {{70001, 3}, {65537, 8}, {1, 70001}});
  for (const Rows& each : shapes) {
    const std::int64_t rows = each.rows, width = each.width;
    const Shape x{rows, width};
    const Tensor allowed = Draw(Rng(9)).mask(x), ids = integers(Rng(7), {rows}, std::int32_t(width));
    const auto on = [](const Tensor& t, const Var& like) { return t.to(like.value.device()); };
    const Tensor open = Tensor::full(x, 0, DType::boolean);  // a mask that leaves nothing
    std::vector<Subject> all{
        {"layer_norm", {x, {width}, {width}}, [](auto v) { return layer_norm(v[0], v[1], v[2]); }},
        {"softmax", {x}, [=](auto v) { return softmax(v[0], on(allowed, v[0])); }},
        {"softmax of nothing", {x}, [=](auto v) { return softmax(v[0], on(open, v[0])); }},
        {"log_softmax", {x}, [](auto v) { return log_softmax(v[0]); }},
        {"log_sum_exp", {x}, [](auto v) { return log_sum_exp(v[0]); }},
        {"maps", {x}, [](auto v) { return gelu(v[0]) * sigmoid(v[0]); }},
        {"broadcasting", {x, {width}, {rows, 1}}, [](auto v) { return (v[0] + v[1]) * v[2]; }},
        {"mask_fill", {x}, [=](auto v) { return mask_fill(v[0], on(allowed, v[0]), -1); }},
        {"dropout", {x}, [](auto v) { return dropout(v[0], 0.3, Rng(3)); }},
        {"gated_gelu", {{rows, 2 * width}}, [](auto v) { return gated_gelu(v[0]); }},
        {"permute",
         {x},
         [](auto v) {
           return permute(v[0], {1, 0});
         }},
        {"concat",
         {x, x},
         [](auto v) {
           return concat({v[0], v[1]}, 1);
         }},
        {"embedding", {{width, 3}}, [=](auto v) { return embedding(v[0], on(ids, v[0])); }},
        {"linear", {x, {7, width}, {7}}, [](auto v) { return linear(v[0], v[1], v[2]); }},
        {"linear_gelu", {x, {7, width}, {7}}, [](auto v) { return linear_gelu(v[0], v[1], v[2]); }},
        {"matmul", {x, {rows, width}}, [](auto v) { return matmul(v[0], v[1], true, false); }},
        {"sum over rows", {x}, [](auto v) { return sum(v[0], 0); }},
    };
    if (rows > 0) {
      all.push_back({"sum over columns", {x}, [](auto v) { return sum(v[0], 1); }});
      all.push_back({"max", {x}, [](auto v) { return max(v[0], 1); }});
      all.push_back({"cross_entropy", {x}, [=](auto v) { return cross_entropy(v[0], on(ids, v[0])).loss; }});
      all.push_back({"linear_cross_entropy", {{rows, 24}, {width, 24}, {width}}, [=](auto v) {
                       const ops::LinearCrossEntropy sliced{.logits_at_once = width * 300};
                       return apply(sliced, {v[0], v[1], v[2], on(ids, v[0]), Tensor()});
                     }});
      all.push_back({"cumulative_mean", {{1, rows, width}}, [](auto v) { return cumulative_mean(v[0]); }});
    }
    if (width >= 3) all.push_back({"top_k", {x}, [](auto v) { return top_k(v[0], 3, 0.75).weights; }});
    for (const Subject& subject : all) {
      if (rows * width > 30000 && subject.name == "matmul") continue;  // its result is width x width
      SCOPED_TRACE(::testing::Message() << rows << " x " << width);
      Tensors inputs;
      for (const Shape& shape : subject.inputs)
        inputs.push_back(uniform(Rng(11 + inputs.size()), shape, -2, 2, DType::f64).to(GetParam()));
      compare(subject.name, GetParam(), inputs, subject.f);
    }
  }
}

// Heads and buckets of the sizes that models have, which the GPU may treat otherwise than small ones.
struct AttentionSize {
  std::int64_t width, bucket, buckets;
};
// Two sequences, four heads of which the first are local, two picks.
void compare_attention(DType dtype, const AttentionSize& size, bool causal, std::int64_t local, bool masked) {
  SCOPED_TRACE(::testing::Message() << "width " << size.width << ", bucket " << size.bucket << " x " << size.buckets
                                    << ", causal " << causal << ", local " << local << ", masked " << masked);
  const std::int64_t n = 2, heads = 4, rows = 2, sorting = heads - local, length = size.bucket * size.buckets;
  const auto drawn = [&](std::uint64_t key, Shape shape) { return uniform(Rng(key), shape, -1, 1, DType::f64); };
  Tensor picks({rows, sorting, size.buckets, n}, DType::i32);  // a null, or a bucket: when causal, one before
  for (std::int64_t i = 0; i < picks.count(); ++i)
    picks.data<std::int32_t>()[i] = std::int32_t(Rng(6).bits().word(std::uint64_t(i)) %
                                                 std::uint64_t(causal ? n + i / n % size.buckets : size.buckets));
  const Shape nulls{sorting, 1, size.width};
  Tensors inputs{drawn(1, {rows, length, heads, size.width}), drawn(2, {rows, length, 2, heads, size.width}),
                 uniform(Rng(3), {rows, sorting, size.buckets, n}, 0, 1, DType::f64)};
  if (causal) inputs.push_back(drawn(4, nulls)), inputs.push_back(drawn(5, nulls));
  for (std::size_t k = 0; k < inputs.size(); ++k) inputs[k] = inputs[k].to(k == 2 ? wide(dtype) : dtype);
  const Tensor mask = masked ? Draw(Rng(8)).mask({rows, length}) : Tensor();
  compare("attention", dtype, inputs, [&](std::span<const Var> x) {
    const auto on = [&](const Tensor& t) { return t ? t.to(x[0].value.device()) : t; };
    const NullBlock null = causal ? NullBlock{x[3], x[4]} : NullBlock{};
    return bucketed_attention(x[0], x[1], {x[2], on(picks)}, null, {size.bucket, size.bucket, local, causal},
                              {on(mask), on(mask)}, {masked ? 0.2 : 0, Rng(9)});
  });
}

TEST_P(OnDevice, AttentionOfModelsAgreesWithTheCpu) {
  std::vector<AttentionSize> sizes{{8, 4, 3}};
  if (!testing::is_emulated())
    sizes = {{64, 64, 4}, {64, 128, 2}, {64, 128, 3}, {32, 32, 4}, {64, 75, 3}, {128, 64, 2}, {72, 75, 2}};
  for (const AttentionSize& size : sizes)
    for (const bool causal : {true, false})
      for (const std::int64_t local : {0, 2, 4})
        for (const bool masked : {false, true}) compare_attention(GetParam(), size, causal, local, masked);
}

// The keys of a null block are all the same, so that their gradients' errors add up, where others cancel.
TEST(OnTheDevice, GradientsOfLargeNullBlocksAgreeWithTheCpu) {
  SINKHORN_NEEDS_DEVICE();
  compare_attention(DType::f32, {64, 128, 2}, true, 0, false);
}

INSTANTIATE_TEST_SUITE_P(Types, OnDevice, ::testing::Values(DType::f32, DType::f64, DType::bf16), [](const auto& info) {
  std::ostringstream name;
  name << info.param;
  return name.str();
});

class GradientOnDevice : public ::testing::TestWithParam<OpCheck> {};

TEST_P(GradientOnDevice, AgreesWithCentralDifferences) {
  SINKHORN_NEEDS_DEVICE();
  if (testing::is_emulated() && GetParam().name == "bucketed_attention")
    GTEST_SKIP() << "minutes; its gradients are compared with those of the CPU above";
  for (const CaseResult& result : GetParam().run(Device::cuda))
    EXPECT_TRUE(result.passed) << GetParam().name << ", " << result.label << ": " << result.report.worst << " at "
                               << result.report.where;
}

INSTANTIATE_TEST_SUITE_P(AllOps, GradientOnDevice, ::testing::ValuesIn(all_op_checks()),
                         [](const auto& info) { return std::string(info.param.name); });

TEST(OnTheDevice, MovesAndChoicesAreTheSameBits) {
  SINKHORN_NEEDS_DEVICE();
  const Tensor x = uniform(Rng(1), {40, 33, 10}, -1, 1), logits = uniform(Rng(2), {500, 70}, -1, 1).to(DType::bf16);
  const Tensor ids = integers(Rng(3), {300}, 40), flags = Draw(Rng(4)).mask({40, 33});
  const auto same = [](const Tensor& on_cpu, const Tensor& on_device) {
    EXPECT_EQ(on_device.device(), Device::cuda);
    EXPECT_TRUE(equal_bits(on_cpu, on_device));
  };
  const Guarded guarded;
  const auto there = [](const Tensor& t) { return t.to(Device::cuda); };
  for (const Tensor& t : {x, x.to(DType::f64), x.to(DType::bf16), Tensor(flags.reshape({40, 33, 1})),
                          ids.slice(0, 240).reshape({4, 6, 10})}) {
    same(permute(t, {2, 0, 1}).value, permute(there(t), {2, 0, 1}).value);
    same(rotate(t, 1, 2).value, rotate(there(t), 1, 2).value);
    same(pad(t, 1, 3, 1).value, pad(there(t), 1, 3, 1).value);
    same(slice(t, 1, 1, 5).value, slice(there(t), 1, 1, 5).value);
    same(concat({t, t}, 2).value, concat({there(t), there(t)}, 2).value);
    same(broadcast_to(reshape(t, {1, -1}), {3, t.count()}).value,
         broadcast_to(reshape(there(t), {1, -1}), {3, t.count()}).value);
    for (DType to : {DType::f32, DType::f64, DType::bf16, DType::i32, DType::boolean}) same(t.to(to), there(t).to(to));
  }
  same(embedding(x.reshape({40, 330}), ids).value, embedding(there(x.reshape({40, 330})), there(ids)).value);
  same(top_k(logits, 5, 0.75).picks, top_k(there(logits), 5, 0.75).picks);
  same(mask_fill(x, flags.reshape({40, 33, 1}), 7).value,
       mask_fill(there(x), there(flags.reshape({40, 33, 1})), 7).value);
  const Tensor coarse = integers(Rng(5), {50, 200}, 4).to(DType::f32);  // full of ties
  same(top_k(coarse, 7, 1).picks, top_k(there(coarse), 7, 1).picks);
}

// A residual in a type of its own: the sum of what is rounded first, to the bit, on both devices.
TEST(OnTheDevice, TermsAreRoundedOntoAResidual) {
  SINKHORN_NEEDS_DEVICE();
  const Tensor stream = uniform(Rng(1), {70, 33}, -1, 1), term = uniform(Rng(2), {70, 33}, -1, 1, DType::f64);
  for (const Device device : {Device::cpu, Device::cuda})
    for (const DType from : {DType::bf16, DType::f32, DType::f64})
      for (const bool undo : {false, true})
        for (const bool in_place : {false, true}) {
          const Tensor onto = stream.to(device).clone(), x = term.to(from).to(device), rounded = x.to(DType::f32);
          const Tensor want = undo ? sub(onto, rounded).value : add(onto, rounded).value;
          const Tape tape = Tape::record();
          const Var leaf = tape.leaf(x), y = add_to({.onto = onto, .undo = undo, .in_place = in_place}, leaf);
          EXPECT_TRUE(equal_bits(y.value, want)) << device << " " << from << " " << undo;
          EXPECT_EQ(y.value.raw() == onto.raw(), in_place && (undo || from != DType::f32)) << device << " " << from;
          const Tensor dy = uniform(Rng(3), {70, 33}, -1, 1).to(device);
          EXPECT_TRUE(equal_bits(tape.backward(y, dy).of(leaf), dy.to(from))) << device << " " << from;
        }
  EXPECT_THROW(apply(ops::Cast{DType::bf16, DType::f32}, {term.to(DType::bf16), stream.slice(0, 1)}), Error);
}

// A bag's rows add to what their table's gradient has gathered, those that nobody read keep what they have; of one row
// that everybody reads and of rows that few read, with ids in more and in fewer pieces than one.
TEST(OnTheDevice, BagsAddToWhatHasGathered) {
  SINKHORN_NEEDS_DEVICE();
  for (const Device device : {Device::cpu, Device::cuda})
    for (const std::int32_t rows : {1, 7, 90})
      for (const std::int64_t width : {5, 8}) {
        Parameter table{uniform(Rng(1), {90, width}, -1, 1).to(device)};
        const Tensor ids = integers(Rng(2), {40, 3}, rows).to(device);
        const Tensor weights = uniform(Rng(3), {40, 3}, -1, 1).to(device);
        const auto gradients = [&](const Tensor& gathers) {
          table.gradient = gathers;
          const Tape tape = Tape::record(bool(gathers));
          const Var weight = tape.leaf(weights);
          const Gradients found = tape.backward(sum(square(embedding_bag(tape.leaf(table), weight, ids))));
          return Tensors{gathers ? gathers : found.of(table), found.of(weight)};
        };
        const Tensor begun = uniform(Rng(4), {90, width}, -1, 1).to(device);
        const Tensors apart = gradients({}), together = gradients(begun.clone());
        EXPECT_LE(relative_error(together[0], add(begun, apart[0]).value), 1e-6) << rows << " " << width;
        EXPECT_TRUE(equal_bits(together[1], apart[1]));
        EXPECT_TRUE(equal_bits(together[0].slice(rows, 90).clone(), begun.slice(rows, 90).clone()));
      }
}

TEST(OnTheDevice, ProductKeysThatDoNotFitAreRefused) {
  SINKHORN_NEEDS_DEVICE();
  const Tensor scores = Tensor::zeros({2, 1, 4000}, DType::f32, Device::cuda);
  testing::expect_error([&] { product_key_top_k(scores, 4000); }, {"4000 picks of 4000 keys", "lower pkm_topk"});
  EXPECT_EQ(product_key_top_k(scores, 3).picks.to_vector(), (std::vector<double>{0, 1, 2}));
}

TEST(OnTheDevice, InfinitiesAndNaNsStay) {
  SINKHORN_NEEDS_DEVICE();
  const float none = -INFINITY;
  const Tensor x = Tensor::from<float>({none, none, none, 1, NAN, 2, 3e38f, 3e38f, -3e38f}, {3, 3}).to(Device::cuda);
  const std::vector<double> y = softmax(x).value.to_vector(), z = log_sum_exp(x).value.to_vector();
  EXPECT_EQ(y[0], 0);
  EXPECT_TRUE(std::isnan(y[3]));
  EXPECT_EQ(y[6], 0.5);
  EXPECT_EQ(z[0], none);
  EXPECT_TRUE(std::isnan(z[1]));
  EXPECT_EQ(log_softmax(x).value.to_vector()[0], none);
}

TEST(OnTheDevice, BadIndicesAreErrors) {
  SINKHORN_NEEDS_DEVICE();
  using testing::expect_error;
  const auto there = [](const Tensor& t) { return t.to(Device::cuda); };
  const Tensor table = there(Tensor::zeros({5, 2})), ids = there(Tensor::from<std::int32_t>({1, 7}, {2}));
  expect_error([&] { embedding(table, ids).value.to_vector(); }, {"embedding", "id 7", "0 .. 4"});
  EXPECT_EQ(table.to_vector().size(), 10u) << "the error is raised once";
  expect_error(
      [&] {
        cross_entropy(there(Tensor::zeros({2, 3})), ids).loss.value.item();
      },
      {"cross_entropy", "target 7", "0 .. 2"});
  expect_error(
      [&] {
        top_k(there(Tensor::zeros({1, 3})), 2, 1, ids.reshape({1, 2})).weights.value.to_vector();
      },
      {"top_k", "pick 7", "-1 .. 2"});
  expect_error(
      [&] {
        gather_buckets(there(Tensor::zeros({1, 3, 1, 1})), there(Tensor::zeros({1, 1, 2})), ids.reshape({1, 1, 2}))
            .value.to_vector();
      },
      {"gather_buckets", "pick 7"});
}

}  // namespace
}  // namespace sinkhorn
