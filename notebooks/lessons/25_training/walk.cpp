#include <algorithm>
#include <cmath>
#include <memory>
#include <numbers>
#include <numeric>

#include "autograd/optimizer.h"
#include "models/generate.h"
#include "models/language_model.h"
#include "nn/parameter_groups.h"
#include "notebooks/kit/lesson.h"
#include "notebooks/lessons/25_training/text.h"

namespace sinkhorn::lessons::lesson_25_training {
namespace {

constexpr std::int64_t kLength = 32, kRows = 8;

struct Settings {
  double learning_rate = 1e-2;
  std::int64_t steps = 300;
  bool causal = true;
  std::int64_t validate_every = 0;
};

// A model, and what it went through.
struct Run {
  std::unique_ptr<SinkhornTransformerLM> model;
  std::int64_t parameters = 0;
  std::vector<double> losses, norms, validation;
};

ModelConfig tiny(std::int64_t vocabulary, bool causal) {
  return {.num_tokens = vocabulary,
          .dim = 32,
          .depth = 2,
          .max_seq_len = kLength,
          .heads = 4,
          .bucket_size = 8,
          .causal = causal,
          .n_local_attn_heads = 2};
}

// Mean cross-entropy of windows (B, T + 1), whether the model is causal or not.
Var loss_of(const SinkhornTransformerLM& model, const Scope& scope, const Tensor& ids) {
  return cross_entropy(model(scope, slice(Var(ids), 1, 0, kLength).value), slice(Var(ids), 1, 1, kLength + 1).value)
      .loss;
}

Run trained(const std::vector<std::int32_t>& text, const std::vector<std::int32_t>& unseen, std::int64_t vocabulary,
            const Settings& settings) {
  constexpr std::int64_t kWarmup = 20;
  Run run;
  run.model = std::make_unique<SinkhornTransformerLM>(tiny(vocabulary, settings.causal), Rng(25), DType::f32,
                                                      EmbeddingScale{0.02, 0.02});
  FlatParameters parameters(*run.model);
  run.parameters = parameters.count();
  for (std::int64_t step = 1; step <= settings.steps; ++step) {
    if (settings.validate_every > 0 && (step - 1) % settings.validate_every == 0)
      run.validation.push_back(loss_of(*run.model, Scope{}, windows(unseen, 32, kLength, Rng(7))).value.item());
    parameters.zero_gradients();
    const Tape tape = Tape::record(true);
    const Scope scope{.tape = tape, .rng = Rng(8).split(std::uint32_t(step)), .training = true};
    const Var loss = loss_of(*run.model, scope, windows(text, kRows, kLength, Rng(9).split(std::uint32_t(step))));
    tape.backward(loss);
    run.losses.push_back(loss.value.item());
    run.norms.push_back(global_norm({parameters.gradients}));
    const double rate = settings.learning_rate * std::min(1.0, double(step) / double(kWarmup));
    adamw_step({.beta2 = 0.99}, step, rate, parameters.values, parameters.gradients, parameters.first_moment,
               parameters.second_moment, {}, std::min(1.0, 1 / (run.norms.back() + 1e-6)));
  }
  return run;
}

// The text of this lesson, and the runs on it; each is made when a step first asks for it.
struct Course {
  Grammar grammar;
  Encoded text{grammar.text(20000, Rng(1))};
  std::vector<std::int32_t> unseen = text.encode(grammar.text(5000, Rng(2)));

  std::int64_t vocabulary() const { return std::int64_t(text.vocabulary.size()); }
  Run with(const Settings& settings) const { return trained(text.ids, unseen, vocabulary(), settings); }
  const Run& good() const {
    static const Run run = with({});
    return run;
  }
};
const Course& course() {
  static const Course course;
  return course;
}

double bits(double nats) { return nats / std::numbers::ln2; }
std::string two(double x) { return fmt::format("{:.2f}", x); }
double mean_of_last(const std::vector<double>& losses, std::ptrdiff_t count = 20) {
  return std::accumulate(losses.end() - count, losses.end(), 0.0) / double(count);
}

// What a loss can be compared with, from knowing nothing to knowing all.
std::vector<std::pair<std::string, double>> landmarks() {
  return {{"nothing (uniform, log V)", std::log(course().text.size())},
          {"how often each letter comes", unigram_entropy(course().text.ids)},
          {"the letter before", bigram_entropy(course().text.ids)},
          {"the grammar, all of it", course().grammar.entropy()}};
}

void show_task(Page& page) {
  page.step("What the model is asked");
  const std::string text = course().grammar.text(200, Rng(1));
  page.text(
      "Everything comes together here: a model, a loss, a tape, an optimizer. The task is the one of all language "
      "models: given the characters so far, name the next. The text is made by a small grammar of three lists with "
      "eight entries each:");
  page.picture(drawing::wrap(page.style(), text));
  page.text(
      "After `the old ki` there is one way to go on. After `the ` in the middle of a sentence there are several, and "
      "at the start of one nobody can know. Cross-entropy (lesson 8) measures that in nats: the mean of -log p over "
      "the characters that came. Divided by ln 2 it is bits per character, which compressors count in, too.");

  page.step("Landmarks, before any training");
  page.text(
      "A loss of 1.4: is that good? It depends on the text. So work out first what different kinds of knowledge are "
      "worth. For this text of {} characters, with V = {} different ones:",
      course().text.ids.size(), course().vocabulary());
  std::vector<std::vector<std::string>> rows;
  std::vector<std::pair<std::string, double>> bars;
  for (const auto& [who, nats] : landmarks()) {
    rows.push_back({who, two(nats), two(bits(nats)), two(std::exp(nats))});
    bars.emplace_back(who, nats);
  }
  page.picture(drawing::table(page.style(), {"who knows", "nats", "bits", "as if one of"}, rows));
  page.text(
      "The third line needs a table of pairs. The last one is exact, because the grammar is known: three choices of "
      "eight a sentence, ln 8 nats each, spread over the {:.1f} characters of a mean sentence. With real text nobody "
      "knows that line; good compressors come near it from above. Nothing that is honest gets below.",
      3 * std::log(8.0) / course().grammar.entropy());
}

void show_step(Page& page) {
  page.step("One step");
  page.text(
      "A step is always the same. Gradients to zero. Forward on a batch: the loss. Backward: the gradient. Its "
      "length, the global norm over all parameters; if it is too long, it is scaled down (clipping), so that one "
      "strange batch cannot throw the model off. Then the optimizer. AdamW divides each parameter's mean gradient, "
      "m, by the root of its mean square, v: every parameter moves about one learning rate a step, wherever its "
      "gradient is consistent. Here is the trainer of this program:");
  page.code("tools/trainer.cpp", "StepResult Trainer::step(");
  page.text(
      "The batch may come in parts, micro-batches: each adds its gradient divided by their number, and the sum is "
      "that of the large batch. The learning rate rises over the first steps, the warm-up, in which m and v still "
      "know little. Then it falls along half a cosine:");
  page.code("tools/schedule.h", "inline double learning_rate_at(");
}

void show_curve(Page& page) {
  page.step("The curve");
  const Run& run = course().good();
  page.text(
      "A Sinkhorn transformer with {} parameters learns from {} windows of {} characters a step. Its loss over {} "
      "steps, computed just now:",
      run.parameters, kRows, kLength, run.losses.size());
  page.picture(drawing::curve(page.style(), run.losses, 12));
  std::vector<std::vector<std::string>> rows;
  for (const auto& [who, nats] : landmarks()) {
    std::string when = "not yet";
    for (std::size_t i = 10; i <= run.losses.size() && when == "not yet"; ++i)
      if (std::accumulate(run.losses.begin() + std::ptrdiff_t(i) - 10, run.losses.begin() + std::ptrdiff_t(i), 0.0) /
              10 <
          nats)
        when = std::to_string(i);
    rows.push_back({who, two(nats), when});
  }
  page.picture(drawing::table(page.style(), {"better than one who knows", "nats", "from step"}, rows));
  page.text(
      "It starts at {:.2f}, a little above log V = {:.2f}: an untrained model's shares are not equal but random, and "
      "to be sure of something at random costs something. A first loss of 10 would be a mistake in the code, found "
      "before the first minute is over. Then come the letters' frequencies, in a few steps; then pairs; then words. "
      "At the end the mean is {:.2f} nats, {:.2f} bits per character. The last line is out of reach here: a window "
      "of {} characters begins in the middle of a sentence, and what stood before it cannot be known.",
      run.losses[0], std::log(course().text.size()), mean_of_last(run.losses), bits(mean_of_last(run.losses)), kLength);
  page.text("What it writes after `the `, at temperature 0.5:");
  const auto tokens = generate(*run.model, {course().text.encode("the ")}, 140, {.temperature = 0.5}, Rng(3));
  page.picture(drawing::wrap(page.style(), "the " + course().text.decode(tokens[0])));
}

void show_rates(Page& page) {
  page.step("Learning rates");
  page.text("The same model and the same batches, with three learning rates. Too low:");
  static const Run slow = course().with({.learning_rate = 3e-4, .steps = 150}),
                   fast = course().with({.learning_rate = 0.3, .steps = 150});
  const auto& good = course().good();
  const std::vector<double> middle(good.losses.begin(), good.losses.begin() + 150);
  page.picture(drawing::curve(page.style(), slow.losses, 6));
  page.text("Good:");
  page.picture(drawing::curve(page.style(), middle, 6));
  page.text("Too high:");
  page.picture(drawing::curve(page.style(), fast.losses, 6));
  page.picture(drawing::table(
      page.style(), {"learning rate", "loss at the end", "highest loss"},
      {{"0.0003", two(mean_of_last(slow.losses)), two(*std::max_element(slow.losses.begin(), slow.losses.end()))},
       {"0.01", two(mean_of_last(middle)), two(*std::max_element(middle.begin(), middle.end()))},
       {"0.3", two(mean_of_last(fast.losses)), two(*std::max_element(fast.losses.begin(), fast.losses.end()))}}));
  page.text(
      "Look at the scales. Too low is a curve that is still on its way when the time is up. Too high comes down to "
      "about the entropy of single letters, {:.2f}, and stays there: its steps are so long that nothing finer than "
      "frequencies survives them. A loss that stands still at a landmark says what has been learned, and what has "
      "not.",
      unigram_entropy(course().text.ids));
}

void show_gap(Page& page) {
  page.step("Learned, or learned by heart?");
  const std::vector<std::int32_t> little(course().text.ids.begin(), course().text.ids.begin() + 400);
  static const Run run = trained(little, course().unseen, course().vocabulary(), {.steps = 300, .validate_every = 5});
  page.text(
      "Now the model gets only the first {} characters, some {:.0f} sentences, again and again. Every few steps it "
      "is asked about text that it has never seen: validation. The training loss, then the validation loss:",
      little.size(), double(little.size()) * course().grammar.entropy() / (3 * std::log(8.0)));
  page.picture(drawing::curve(page.style(), run.losses, 7));
  page.picture(drawing::curve(page.style(), run.validation, 7));
  const auto best = std::min_element(run.validation.begin(), run.validation.end());
  page.text(
      "At the end the one is {:.2f}, the other {:.2f}; the best validation loss was {:.2f}, at step {}. From there "
      "on the model learned these sentences by heart, and what it learned was wrong elsewhere. The gap between the "
      "two says so. The remedies: more text, fewer parameters, dropout, weight decay, or to stop in time. `sinkhorn "
      "train` keeps the last tenth of the text for validation, and reports that.",
      mean_of_last(run.losses), run.validation.back(), *best, 5 * (best - run.validation.begin()));
}

void show_leak(Page& page) {
  page.step("Too good to be true");
  static const Run run = course().with({.steps = 300, .causal = false});
  page.text("One word in the settings is changed, the rest is as in the good run. And what a run that is:");
  page.picture(drawing::curve(page.style(), run.losses, 8));
  page.text(
      "{:.3f} nats at the end, where the grammar itself leaves {:.3f}: below what is possible. There is only one way "
      "to do that. The model sees the answer. Here causal = false lets every position look at the next one, which is "
      "what it is asked for. (autoregressive_loss refuses such a model; this run computed its loss by hand.) In "
      "earnest it is a mask with an error of one, a bucket that may choose itself, a rounded position (lessons 15 "
      "and 24). Nothing crashes, and the curve is beautiful. So compare with a landmark. The trainer does: it asks "
      "compressors about the validation text, warns below the best of them, and names the tool that finds out which "
      "layer and head it is:\n\n  sinkhorn leak-check --checkpoint runs/mine",
      mean_of_last(run.losses), course().grammar.entropy());
}

}  // namespace

void walk(Page& page) {
  show_task(page);
  show_step(page);
  show_curve(page);
  show_rates(page);
  show_gap(page);
  show_leak(page);

  page.step("Your turn");
  page.text(
      "Write the loop: the schedule, gradients over micro-batches, clipping, and the steps. The checks look at each "
      "piece; then at five steps, clipped and not clipped, to the last digits; then at a run of 200 steps, which "
      "must come below three quarters of the bigram entropy, and to the same bits twice.\n\nAfter that there is "
      "nothing in ./run train that you have not seen from inside.");
}

Quiz quiz(Rng rng) {
  const auto draw = [&](std::uint32_t tag, std::int64_t low, std::int64_t high) {
    return low + std::int64_t(rng.split(tag).bits().word(0) % std::uint64_t(high - low + 1));
  };
  const std::int64_t vocabulary = draw(0, 20, 99), warmup = 10 * draw(1, 5, 20), early = draw(2, 1, 4) * warmup / 5;
  const double loss = double(draw(3, 90, 190)) / 100, peak = double(draw(4, 1, 9)) / 1000;
  const double norm = double(draw(5, 15, 80)) / 10, clip = double(draw(6, 5, 10)) / 10;
  return {
      Question::about_number(
          fmt::format("A model has a vocabulary of {} characters. What should its loss be, in nats, before training?",
                      vocabulary),
          std::log(double(vocabulary)),
          "all characters get about the same share, 1 / V; the loss is log V, or a little more"),
      Question::about_number(
          fmt::format("A loss is {:.2f} nats a character. How many bits per character is that?", loss), bits(loss),
          "nats divided by ln 2 = 0.6931"),
      Question::about_number(
          fmt::format("The learning rate rises to {:.3f} over a warm-up of {} steps. What is it at step {}?", peak,
                      warmup, early),
          peak * double(early) / double(warmup), "a straight line from 0"),
      Question::about_number(
          fmt::format("The gradient's norm is {:.1f}, and it is clipped at {:.1f}. What is each element multiplied by?",
                      norm, clip),
          std::min(1.0, clip / norm), "clip over norm: the direction stays"),
      Question::with_choices("Validation loss rises while training loss falls. What is it?",
                             {"The model learns its training text by heart", "The learning rate is too low",
                              "The validation text leaks into training", "Gradients are not set to zero"},
                             "what it learns is true of that text alone; a leak would lower the validation loss, too"),
      Question::with_choices(
          "Your loss is far below what the best compressors need for the text. What do you do first?",
          {"Look for a leak", "Publish", "Raise the learning rate", "Make the model smaller"},
          "below what is possible, the model must see what it should foretell"),
      Question::with_choices(
          "Three micro-batches of equal size replace one batch. With what is backward seeded in each?",
          {"1/3", "1", "3", "its own loss"}, "the mean over all rows is the mean of the three means"),
  };
}

}  // namespace sinkhorn::lessons::lesson_25_training
