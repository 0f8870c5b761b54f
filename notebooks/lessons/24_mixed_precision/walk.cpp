#include <algorithm>
#include <bit>
#include <cmath>

#include "autograd/ops.h"
#include "autograd/optimizer.h"
#include "notebooks/kit/grid.h"
#include "notebooks/kit/lesson.h"

namespace sinkhorn::lessons::lesson_24_mixed_precision {
namespace {

double rounded(double x) { return double(float(bf16(float(x)))); }

// "0 10000000 1001001": sign, exponent, and the upper bits of the fraction of a number.
std::string bits_of(float x, int fraction) {
  const auto word = std::bit_cast<std::uint32_t>(x);
  std::string text;
  for (int bit = 31; bit >= 23 - fraction; --bit) {
    text += (word >> bit & 1) ? '1' : '0';
    if (bit == 31 || bit == 23) text += ' ';
  }
  return text;
}

// The distance from a bf16 to the next larger one.
double spacing(float x) {
  bf16 next = bf16(x);
  ++next.bits;
  return double(float(next)) - rounded(x);
}

void show_format(Page& page) {
  page.step("Half of a float");
  page.text(
      "An f32 has 32 bits: one for the sign, eight for the exponent, 23 for the fraction. A bf16 is the first 16 of "
      "them. It keeps all of the exponent, and so the whole range of f32, from 1e-38 to 3e38. Of the fraction it "
      "keeps seven bits. Here is pi:");
  const float pi = 3.14159265f;
  page.picture("  f32   " + bits_of(pi, 23) + "\n  bf16  " + bits_of(float(bf16(pi)), 7) + "\n");
  std::vector<std::vector<std::string>> rows;
  for (const float x : {0.1f, 1.0f, 3.14159265f, 100.3f, 257.0f, 1000.7f, 1e30f})
    rows.push_back({drawing::number(double(x), 7), drawing::number(rounded(double(x)), 7),
                    drawing::number(spacing(x), 3), drawing::number(100 * std::abs(rounded(x) / double(x) - 1), 2)});
  page.picture(drawing::table(page.style(), {"f32", "bf16", "to the next bf16", "error in %"}, rows));
  page.text(
      "The distance between neighbours doubles with every power of 2, so the relative error is everywhere at most "
      "2^-8, 0.4 %. What that buys: half the memory, half the bytes to move (lesson 20), and tensor cores that "
      "multiply it 15 times as fast as f32 (lesson 22).");

  page.step("To the nearest, ties to even");
  page.text(
      "Rounding looks at the 16 bits that go. Below the middle, 0x8000, round down; above it, up; exactly in the "
      "middle, to the neighbour whose last bit is 0. Why not always up? Because then every tie adds half a step, and "
      "what adds up over thousands of numbers is a drift. The library does it without a branch:");
  page.code("autograd/dtype.h", "SINKHORN_HD static constexpr std::uint16_t round");
  std::vector<std::vector<std::string>> cases;
  for (const std::uint32_t word : {0x3f807fffu, 0x3f808000u, 0x3f808001u, 0x3f818000u, 0x3fffc000u, 0x7f7fffffu}) {
    const float x = std::bit_cast<float>(word);
    cases.push_back({fmt::format("{:04x} {:04x}", word >> 16, word & 0xffff), drawing::number(x, 9),
                     fmt::format("{:04x}", bf16(x).bits), drawing::number(rounded(x), 9)});
  }
  page.picture(drawing::table(page.style(), {"f32 bits", "is", "bf16 bits", "is"}, cases));
  page.text(
      "The second and the fourth are ties: one goes down, the other up, both to an even last digit. In the fifth the "
      "carry runs through the fraction into the exponent, and the result is right: 2. The last one has no neighbour "
      "above it but infinity. A NaN is an exponent of ones with any fraction but 0; adding to that could make 0 of "
      "it, so NaN has a line of its own.");
}

void show_sums(Page& page) {
  page.step("A sum that stalls");
  page.text(
      "Add 1 again and again, and round the sum to bf16 each time. Between 256 and 512 neighbours are 2 apart. 256 + "
      "1 lies in the middle, the tie goes to even, and that is 256:");
  constexpr int kCount = 600;
  std::vector<double> sums;
  sums.reserve(kCount);
  bf16 sum(0.0f);
  for (int i = 0; i < kCount; ++i) {
    sum = bf16(float(sum) + 1);
    sums.push_back(double(float(sum)));
  }
  page.picture(drawing::curve(page.style(), sums));
  const Tensor ones = Tensor::full({kCount}, 1, DType::bf16);
  page.text(
      "{} ones make {}. The library's sum of the same {} numbers, stored as bf16, is {}: its kernels load bf16 into "
      "f32, sum there, and round once at the end. In the code that type is Real<T>:",
      kCount, sums.back(), kCount, sinkhorn::sum(Var(ones)).value.item());
  page.code("autograd/dtype.h", "using Real =");
  page.text(
      "For products there is a bonus. Eight significant bits times eight are sixteen, and f32 has 24: every product "
      "of two bf16 is exact in f32. So a dot product rounds in its sum alone. Two vectors of 2048 numbers, four ways:");
  const Tensor a = uniform(Rng(1), {2048}, 0, 2, DType::bf16), b = uniform(Rng(2), {2048}, -1, 2, DType::bf16);
  const std::vector<double> x = a.to_vector(), y = b.to_vector();
  double exact = 0;
  float in_f32 = 0;
  bf16 in_bf16(0.0f);
  for (std::size_t i = 0; i < x.size(); ++i) {
    exact += x[i] * y[i];
    in_f32 += float(x[i]) * float(y[i]);
    in_bf16 = bf16(float(in_bf16) + float(bf16(float(x[i]) * float(y[i]))));
  }
  const double library = matmul(Var(a.reshape({1, 2048})), Var(b.reshape({2048, 1}))).value.item();
  const auto row = [&](const std::string& name, double got) {
    return std::vector<std::string>{name, fmt::format("{:.4f}", got),
                                    drawing::number(100 * std::abs(got / exact - 1), 2)};
  };
  page.picture(drawing::table(page.style(), {"sum in", "result", "error in %"},
                              {row("f64", exact), row("f32", in_f32), row("bf16", double(float(in_bf16))),
                               row("the library's matmul, result in bf16", library)}));
}

void show_master_weights(Page& page) {
  page.step("Updates that vanish");
  page.text(
      "A weight of 1 shall shrink by 0.001 in every step. Below 1 the next bf16 is 0.0039 away. Less than half of "
      "that is rounded back to where it came from, in every step anew. Above: the weight kept in bf16 alone. Below: "
      "a master copy in f32 that is updated, and rounded to bf16 for use.");
  constexpr int kSteps = 240;
  std::vector<double> alone, with_master;
  alone.reserve(kSteps);
  with_master.reserve(kSteps);
  bf16 weight(1.0f);
  float master = 1;
  for (int s = 0; s < kSteps; ++s) {
    weight = bf16(float(weight) - 0.001f);
    master -= 0.001f;
    alone.push_back(double(float(weight)));
    with_master.push_back(rounded(master));
  }
  page.picture(drawing::curve(page.style(), alone, 4));
  page.picture(drawing::curve(page.style(), with_master, 8));
  page.text(
      "After {} steps: {} and {}. Learning rates are small, so nearly all updates of a late training run are of that "
      "size. In this library a master weight needs nothing special: the parameter is f32, cast() to bf16 is an op on "
      "the tape, and its gradient comes back as f32. The optimizer never sees bf16.",
      kSteps, alone.back(), drawing::number(with_master.back(), 4));
}

// A stack of reversible layers on pairs stored in `dtype`, with branches tanh(x W): how wrong the input is that comes
// back, relative to its size.
double reconstruction_error(int depth, DType dtype) {
  constexpr std::int64_t kWidth = 32;
  const Tensor first = normal(Rng(5), {16, kWidth}, 0, 1), second = normal(Rng(6), {16, kWidth}, 0, 1);
  const auto branch = [](const Var& x, int layer) {
    return tanh(
        matmul(cast(x, DType::f32), Var(normal(Rng(7).split(std::uint32_t(layer)), {kWidth, kWidth}, 0, 0.18))));
  };
  const auto stored = [&](const Var& x) { return cast(x, dtype); };
  const auto wide = [](const Var& x) { return cast(x, DType::f32); };
  Var a = stored(first), b = stored(second);
  const Var start = a;
  for (int layer = 0; layer < depth; ++layer) {
    a = stored(add(wide(a), branch(b, 2 * layer)));
    b = stored(add(wide(b), branch(a, 2 * layer + 1)));
  }
  for (int layer = depth - 1; layer >= 0; --layer) {
    b = stored(sub(wide(b), branch(a, 2 * layer + 1)));
    a = stored(sub(wide(a), branch(b, 2 * layer)));
  }
  return global_norm({sub(wide(a), wide(start)).value}) / global_norm({wide(start).value});
}

void show_residual_stream(Page& page) {
  page.step("The residual stream stays in f32");
  page.text(
      "Reversible layers (lesson 16) rebuild their inputs from their outputs by subtraction. Each stored number is "
      "rounded, and each rounding comes back as an error. A stack of branches tanh(x W) run forward and back, with "
      "the pair stored in f32 and in bf16; relative error of the input that comes back:");
  std::vector<std::vector<std::string>> rows;
  for (const int depth : {1, 2, 4, 8, 12})
    rows.push_back({std::to_string(depth), drawing::number(reconstruction_error(depth, DType::f32), 2),
                    drawing::number(reconstruction_error(depth, DType::bf16), 2)});
  page.picture(drawing::table(page.style(), {"layers", "f32", "bf16"}, rows));
  page.text(
      "The gradient is taken at the rebuilt inputs. In f32 it is as good as exact. In bf16 it would be the gradient "
      "of some other network. The branches may compute in bf16; what they are added to must not.");
}

void show_leak(Page& page) {
  page.step("Positions that become equal");
  page.text(
      "A last trap, found in the published package of this model. A causal mask asks whether a key's position is "
      "greater than the query's. If positions are held in bf16, those above 256 are rounded to even numbers. Here is "
      "the mask for positions 252 .. 263; light: seen, dark: masked:");
  constexpr int kFirst = 252, kCount = 12;
  Tensor mask({kCount, kCount}, DType::f64);
  int leaks = 0;
  for (int query = 0; query < kCount; ++query)
    for (int key = 0; key < kCount; ++key) {
      const bool masked = rounded(kFirst + key) > rounded(kFirst + query);
      mask.span<double>()[query * kCount + key] = masked ? 1 : 0;
      leaks += key > query && !masked;
    }
  page.picture(drawing::heat_map(page.style(), mask, {.low = 0, .high = 1, .row_label = "query, from 252"}));
  page.text(
      "{} times a query sees a key that comes after it. The model then reads off the next token, its loss falls "
      "below what is possible, and everything looks wonderful (lesson 15 has more of that kind). In this library "
      "positions are whole numbers. The mistake is kept as a plant, so that you can see it found:\n\n  sinkhorn "
      "leak-check --preset shakespeare --seq-len 512 \\\n      --plant local-positions-bf16",
      leaks);
}

}  // namespace

void walk(Page& page) {
  show_format(page);
  show_sums(page);
  show_master_weights(page);
  show_residual_stream(page);
  show_leak(page);

  page.step("Who is stored how");
  page.picture(drawing::table(page.style(), {"what", "type", "why"},
                              {{"matmul and attention operands", "bf16", "tensor cores, half the bytes"},
                               {"sums inside of them", "f32", "a sum in bf16 stalls"},
                               {"softmax statistics, log-sum-exp", "f32", "exp of an error is a factor"},
                               {"residual stream", "f32", "reversible layers subtract"},
                               {"master weights, moments", "f32", "small updates vanish"},
                               {"positions, picks, masks", "integers", "neighbours must differ"}}));
  page.text(
      "f16, the older half, has ten bits of fraction and five of exponent: finer, but small gradients become 0, and "
      "one has to scale the loss. bf16 has the range of f32, and needs none of that.");

  page.step("Your turn");
  page.text(
      "Write the conversions, the dot product, and the optimizer step. The checks compare your rounding with the "
      "library's, bit for bit: ties of both kinds, carries, the largest and the smallest numbers, NaNs of all kinds. "
      "The dot product must not stall. The step must remember 300 updates that are each too small for bf16.");
}

Quiz quiz(Rng rng) {
  const int power = int(whole(rng.split(0), 2, 7));
  const std::int64_t odd = 2 * whole(rng.split(1), 130, 250) + 1;
  const std::int64_t count = whole(rng.split(2), 300, 900), start = std::int64_t(1) << whole(rng.split(3), 0, 3);
  const double parameters = double(whole(rng.split(4), 2, 90));
  const double within = std::exp2(power) * double(whole(rng.split(5), 4, 7)) / 4;
  bf16 sum(0.0f);
  for (std::int64_t i = 0; i < count; ++i) sum = bf16(float(sum) + float(start));
  return {
      Question::about_number(fmt::format("How far is {} from the next larger bf16?", within), spacing(float(within)),
                             fmt::format("between {} and {} the seven bits of fraction make steps of {} / 128",
                                         std::exp2(power), std::exp2(power + 1), std::exp2(power))),
      Question::about_number(
          fmt::format("What is {} rounded to bf16?", odd), rounded(double(odd)),
          "between 256 and 512 only even numbers exist; an odd one is a tie, and goes to a multiple of 4", 0),
      Question::about_number(
          fmt::format("{} is added {} times, and the sum is rounded to bf16 each time. Where does it end?", start,
                      count),
          double(float(sum)), fmt::format("it stalls where half a step is {}: at 256 * {}", start, start), 0),
      Question::about_number(
          fmt::format("A model has {} million parameters. How many MB do its weights in bf16, its master weights and "
                      "both of Adam's moments in f32 take together?",
                      parameters),
          parameters * (2 + 4 + 4 + 4), "2 + 4 + 4 + 4 bytes a parameter"),
      Question::with_choices(
          "Why is every product of two bf16 exact in f32?",
          {"8 significant bits times 8 are 16, and f32 has 24", "Because both have eight bits of exponent",
           "Because products do not round", "It is not, but the error averages out"},
          "the leading 1 that is not stored makes 8 of 7 bits"),
      Question::with_choices("Which of these must not be kept in bf16?",
                             {"The sum of a dot product while it is made", "The operands of a matmul",
                              "The weights as the model uses them", "Activations inside of a branch"},
                             "what grows by many small terms needs more bits than each term"),
  };
}

}  // namespace sinkhorn::lessons::lesson_24_mixed_precision
