#include <cmath>
#include <map>

#include "autograd/ops/cross_entropy.h"
#include "autograd/ops/elementwise.h"
#include "autograd/ops/movement.h"
#include "autograd/ops/reduce.h"
#include "notebooks/kit/lesson.h"

namespace sinkhorn::lessons::lesson_08_cross_entropy {
namespace {

constexpr double kBitsPerNat = 1.4426950408889634;  // 1 / log 2

Tensor row(const std::vector<double>& numbers, DType dtype = DType::f64) {
  return Tensor::from(numbers, {1, std::int64_t(numbers.size())}).to(dtype);
}
Tensor ids(const std::vector<std::int32_t>& targets) { return Tensor::from(targets, {std::int64_t(targets.size())}); }

double loss_of(const Tensor& logits, const std::vector<std::int32_t>& targets) {
  return cross_entropy(Var(logits), ids(targets)).loss.value.item();
}

Tensor gradient_of(const Tensor& logits, const std::vector<std::int32_t>& targets,
                   std::optional<std::int32_t> ignore = {}) {
  const Tape tape = Tape::record();
  const Var leaf = tape.leaf(logits);
  return tape.backward(cross_entropy(leaf, ids(targets), {}, ignore).loss).of(leaf);
}

// How often each character stands in a text.
std::map<char, int> counts_of(const std::string& text) {
  std::map<char, int> counts;
  for (const char c : text) ++counts[c];
  return counts;
}

}  // namespace

void walk(Page& page) {
  page.step("How surprised are you?");
  const std::string text = "she sells sea shells by the sea shore";
  const std::map<char, int> counts = counts_of(text);
  const auto length = double(text.size());
  page.text(
      "A language model guesses the next character of a text: it gives each possible character a probability, a "
      "share of 1. Then the character is shown. How good was the guess? Only one number counts: the probability p "
      "that it gave to what really came. The surprise is -log p. It is 0 for p = 1, and grows without end as p goes "
      "to 0.\n\n"
      "Take \"{}\", and a model that knows only how often each character occurs in it:",
      text);
  std::vector<std::vector<std::string>> rows;
  for (const char c : std::string("s eby")) {
    const double p = counts.at(c) / length;
    rows.push_back({fmt::format("'{}'", c), fmt::format("{} of {}", counts.at(c), text.size()),
                    fmt::format("{:.3f}", p), fmt::format("{:.3f}", -std::log(p)),
                    fmt::format("{:.3f}", -std::log(p) * kBitsPerNat)});
  }
  page.picture(drawing::table(page.style(), {"next", "occurs", "p", "surprise in nats", "in bits"}, rows));
  page.text(
      "Nats and bits are the same surprise in two units: the natural logarithm gives nats, the logarithm to base 2 "
      "gives bits, and a nat is {:.4f} bits. One bit is the surprise of a fair coin.",
      kBitsPerNat);

  page.step("Cross-entropy: the mean surprise");
  double total = 0;
  for (const auto& [c, n] : counts) total -= n * std::log(n / length);
  page.text(
      "The loss of a model is its mean surprise over all positions of a text. It is called cross-entropy. On this "
      "text:");
  page.picture(drawing::bars(page.style(), {{"all " + std::to_string(counts.size()) + " characters alike, bits",
                                             std::log2(double(counts.size()))},
                                            {"by frequency, bits", total / length * kBitsPerNat}}));
  page.text(
      "Who knows the frequencies needs fewer bits. Who knows words and grammar needs fewer still. The same number "
      "says how far the text could be compressed with the model's help, so bits per character can be compared with "
      "bzip2, and `train` does so.\n\n"
      "If the model reads tokens that stand for several characters each, take care to divide by the right number: "
      "all surprise together is loss times tokens, and it is shared out over characters.");

  page.step("From logits to the loss");
  const Tensor x = row({2, 0.5, -1, 1});
  page.text(
      "A model does not give probabilities but scores, any numbers, one for each of V characters. They are called "
      "logits, and softmax (lesson 6) makes shares of them. With target t, the id of what really came, the surprise "
      "is\n\n"
      "  -log( exp(x_t) / sum_v exp(x_v) )  =  log sum_v exp(x_v) - x_t\n\n"
      "The right side is the log-sum-exp minus the target's logit. For V = 4 and t = 3:");
  page.values("logits x", x);
  page.values("softmax", softmax(Var(x)).value);
  const double lse = log_sum_exp(Var(x)).value.item();
  page.text("  log-sum-exp = {:.4f}\n  loss        = {:.4f} - 1 = {:.4f}\n  library     = {:.4f}", lse, lse, lse - 1,
            loss_of(x, {3}));

  page.step("Why in one step");
  page.text(
      "The library has softmax and log; why an op of its own? Let the target's logit lie below the other by some "
      "gap, in f32, and compute the loss in two steps and in one:");
  std::vector<std::vector<std::string>> gaps;
  for (const double gap : {1.0, 10.0, 80.0, 120.0, 1000.0}) {
    const Tensor two = row({gap, 0}, DType::f32);
    const Var share = slice(softmax(Var(two)), 1, 1, 2);
    gaps.push_back({drawing::number(gap), drawing::number(share.value.item()),
                    drawing::number(neg(log(share)).value.item(), 6), drawing::number(loss_of(two, {1}), 6)});
  }
  page.picture(drawing::table(page.style(), {"gap", "share of the target", "-log(share)", "cross_entropy"}, gaps));
  page.text(
      "A share below 1e-45 is 0 in f32, and its logarithm is infinite. One such position, and the loss of the whole "
      "batch is infinite, and training is over. The difference of two logits has no such trouble.");

  page.step("Positions that do not count");
  const std::vector<std::int32_t> targets = {3, -1, 0};
  const Tensor three = Tensor::from(std::vector<double>{2, 0.5, -1, 1, 0.3, 0, 0, 2, -1, 1, 0, 0.5}, {3, 4});
  const CrossEntropy some = cross_entropy(Var(three), ids(targets), {}, -1);
  page.text(
      "Sequences of a batch differ in length, so short ones are padded, and nobody should learn to predict padding. "
      "Such positions are marked, by a mask or by a target id set aside for it, and left out of the mean. Which rows "
      "count in the library:");
  page.code("autograd/ops/cross_entropy.h", "SINKHORN_HD bool counts(std::int64_t row) const {");
  page.text(
      "Here are three positions with targets 3, -1 and 0, where -1 is to be ignored. It says: loss {:.4f}, over {} "
      "positions. That is the mean of {:.4f} and {:.4f}.\n\n"
      "Two traps. An id that is ignored must never be used as an index: -1 lies outside of the row. And if no "
      "position counts at all, 0 / 0 is NaN; the library says loss {}, with gradients of 0.",
      some.loss.value.item(), some.count.item(), loss_of(three.slice(0, 1), {3}), loss_of(three.slice(2, 3), {0}),
      cross_entropy(Var(three), ids({-1, -1, -1}), {}, -1).loss.value.item());

  page.step("The gradient: what you said minus what was true");
  page.text(
      "The gradient of log-sum-exp is softmax (each logit moves it by its share), and that of x_t is 1 at the "
      "target, 0 elsewhere: a one-hot row. The mean divides by the count:\n\n"
      "  dx_v = (softmax(x)_v - (v == t)) / count\n\n"
      "For the three positions, from the library:");
  page.picture(drawing::heat_map(page.style(), gradient_of(three, targets, -1),
                                 {.row_label = "position", .column_label = "character 0 ... 3", .numbers = true}));
  page.text(
      "In each row, one number is below 0: the target's logit is to grow, since training goes against the gradient. "
      "All others are to fall, each by its share. A row adds up to 0, and the ignored row is 0 everywhere.\n\n"
      "See how it depends on how right the model is already. The target's logit is x, the other three are 0:");
  std::vector<std::vector<std::string>> rights;
  for (const double logit : {-20.0, -2.0, 0.0, 2.0, 20.0}) {
    const Tensor at = row({logit, 0, 0, 0});
    rights.push_back({drawing::number(logit), fmt::format("{:.4f}", loss_of(at, {0})),
                      drawing::number(gradient_of(at, {0}).to_vector()[0], 4)});
  }
  page.picture(drawing::table(page.style(), {"x", "loss", "gradient of x"}, rights));
  page.text(
      "Very wrong: a push of 1, and never more. Right: hardly any push. In two steps, it would be 1 / p times p (1 - "
      "p): something huge times something tiny, and NaN where p is 0.");

  page.step("In the library");
  page.text("Forward keeps one number a position, the log-sum-exp; backward makes each share again from it:");
  page.code("autograd/cpu/cross_entropy.cpp", "void CrossEntropy<T>::backward");

  page.step("Your turn");
  page.text(
      "Write cross_entropy, its gradient, and bits_per_character. The checks use logits up to 1000, positions that "
      "are ignored by a negative id and by an id like others, batches in which nothing counts, targets that do not "
      "exist (throw an Error), and a dloss that is not 1. They compare with the library and with small nudges.");
}

Quiz quiz(Rng rng) {
  const std::int64_t classes = whole(rng.split(0), 20, 200);
  const double p = rounded(rng.split(1), 0.05, 0.6, 2);
  const std::int64_t all = whole(rng.split(2), 10, 20), ignored = whole(rng.split(3), 2, 8);
  const double surprise = rounded(rng.split(4), 0.5, 3, 1);
  const double loss = rounded(rng.split(5), 1.5, 4, 2);
  const double a = rounded(rng.split(6), -2, 2, 1), b = rounded(rng.split(7), -2, 2, 1);
  const double share = rounded(rng.split(8), 0.1, 0.9, 2);
  const std::int64_t count = whole(rng.split(9), 2, 5);
  return {
      Question::about_number(
          fmt::format("A model gives all of {} characters the same logit. What is its loss, in nats?", classes),
          loss_of(Tensor::full({1, classes}, 0.3, DType::f64), {0}), "log of the number of characters"),
      Question::about_number(
          fmt::format("The character that came had probability {:.2f}. How many bits of surprise?", p), -std::log2(p),
          "-log2(p)"),
      Question::about_number(
          fmt::format("Logits ({}, {}), and the target is the first. What is the loss in nats?", a, b),
          loss_of(row({a, b}), {0}), "log(exp(x0) + exp(x1)) - x0"),
      Question::about_number(
          fmt::format("{} positions, {} of them ignored; at each other one the surprise is {}. What is the loss?", all,
                      ignored, surprise),
          surprise, "a mean over the positions that count, whatever their number"),
      Question::about_number(
          fmt::format(
              "{} positions count. At one of them the target's share is {:.2f}. What is the gradient of its logit?",
              count, share),
          (share - 1) / double(count), "(share - 1) / count"),
      Question::about_number(
          fmt::format("A loss of {:.2f} nats a token; a token stands for 4 characters on average. How many bits "
                      "per character?",
                      loss),
          loss * kBitsPerNat / 4, "nats times 1.4427, over 4"),
      Question::with_choices(
          "Why is -log(softmax(x)[t]) not computed in two steps?",
          {"the share may be 0 in floating point, and its logarithm infinite",
           "two steps give another gradient on paper", "softmax has no gradient", "logarithms are too slow"},
          "on paper both are the same; with rounding only one is"),
  };
}

}  // namespace sinkhorn::lessons::lesson_08_cross_entropy
