#include <cmath>

#include "autograd/optimizer.h"
#include "models/language_model.h"
#include "nn/composed_attention.h"
#include "nn/flat_parameters.h"
#include "notebooks/kit/lesson.h"

namespace sinkhorn::lessons::lesson_15_causality {
namespace {

constexpr std::int64_t kBucket = 4, kLength = 16, kBuckets = kLength / kBucket;

// A small causal language model over 8 symbols, one sorting head plain and one rotated.
ModelConfig small_model(std::int64_t depth) {
  return {.num_tokens = 8,
          .dim = 32,
          .depth = depth,
          .max_seq_len = kLength,
          .heads = 2,
          .bucket_size = kBucket,
          .causal = true,
          .n_top_buckets = 1};
}

// How far row t of `output` moves when row s of its input is changed: (T, T). `at` gives the output with row s changed,
// or unchanged for s = -1, as (T, width).
template <class At>
Tensor influence(std::int64_t length, At at) {
  Tensor moved({length, length}, DType::f64);
  const std::vector<double> before = at(std::int64_t(-1)).to_vector();
  const std::size_t width = before.size() / std::size_t(length);
  for (std::int64_t s = 0; s < length; ++s) {
    const std::vector<double> after = at(s).to_vector();
    for (std::int64_t t = 0; t < length; ++t) {
      double largest = 0;
      for (std::size_t e = std::size_t(t) * width; e < std::size_t(t + 1) * width; ++e)
        largest = std::max(largest, std::abs(after[e] - before[e]));
      moved.span<double>()[std::size_t(t * length + s)] = largest;
    }
  }
  return moved;
}

// Where anything moved at all: 1, else 0.
Tensor moved_at_all(const Tensor& influence) {
  Tensor result = influence.clone();
  for (double& x : result.span<double>()) x = x > 0 ? 1 : 0;
  return result;
}

// Powers of ten, from -4 up; what did not move at all lies below them, at -5.
Tensor powers_of_ten(const Tensor& influence) {
  Tensor result = influence.clone();
  for (double& x : result.span<double>()) x = x > 0 ? std::max(std::log10(x), -4.0) : -5;
  return result;
}

std::int64_t above_the_diagonal(const Tensor& influence) {
  const std::int64_t length = influence.shape()[0];
  std::int64_t count = 0;
  for (std::int64_t t = 0; t < length; ++t)
    for (std::int64_t s = t + 1; s < length; ++s) count += influence.span<double>()[std::size_t(t * length + s)] > 0;
  return count;
}

// Logits of a model for the same tokens with token s changed.
Tensor influence_on_logits(const SinkhornTransformerLM& model) {
  const Tensor ids = integers(Rng(3), {1, kLength}, 8);
  return influence(kLength, [&](std::int64_t s) {
    const Tensor other = ids.clone();
    if (s >= 0) other.span<std::int32_t>()[std::size_t(s)] = (other.span<std::int32_t>()[std::size_t(s)] + 3) % 8;
    return model(Scope{}, other).value.reshape({kLength, 8});
  });
}

// Queries, keys and values of two sorting heads, the second of them rotated, and a null block.
struct TwoHeads {
  explicit TwoHeads(const Rng& rng)
      : q(uniform(rng.split(0), {1, kLength, 2, 4}, -1, 1, DType::f64)),
        kv(uniform(rng.split(1), {1, kLength, 2, 2, 4}, -1, 1, DType::f64)),
        null_keys(uniform(rng.split(2), {2, 1, 4}, -1, 1, DType::f64)),
        null_values(uniform(rng.split(3), {2, 1, 4}, -1, 1, DType::f64)) {}

  Routing routing() const { return CausalSortNet{}(Scope{}, q, kv, kBucket, 0, 1, 0.75, {}); }
  // The output of one head with the value of token s changed, (T, 4).
  Tensor output(std::int64_t head, std::int64_t s) const {
    const Tensor other = kv.clone();
    if (s >= 0)
      for (std::int64_t e = 0; e < 4; ++e) other.span<double>()[std::size_t(((s * 2 + 1) * 2 + head) * 4 + e)] += 1;
    const Var y = composed_attention(q, other, routing(), {null_keys, null_values}, {kBucket, kBucket, 0, true, true});
    return slice(y, 2, head, head + 1).value.reshape({kLength, 4});
  }

  Tensor q, kv, null_keys, null_values;
};

std::string block_name(std::int64_t pick) { return pick == 0 ? "null" : "bucket " + std::to_string(pick - 1); }

// A mistake for the picture: every bucket chooses itself.
Var choose_yourself(const SinkhornAttention& layer, const Scope& scope, const Var& q, const Var& kv,
                    const AttentionMasks& masks) {
  Tensor picks({q.shape()[0], q.shape()[2], kBuckets, 1}, DType::i32);
  for (std::int64_t i = 0; i < picks.count(); ++i)
    picks.span<std::int32_t>()[std::size_t(i)] = std::int32_t(1 + i % kBuckets);
  const Routing routing{Tensor::full(picks.shape(), 1), picks};
  return bucketed_attention(q, kv, routing, {scope.leaf(layer.null_keys), scope.leaf(layer.null_values)},
                            layer.pattern(), masks);
}

// Losses, step by step, of a model that is shown random symbols, fresh ones in every step.
std::vector<double> train_on_noise(SinkhornTransformerLM& model, int steps) {
  FlatParameters flat(model);
  const Range all{0, flat.count()};
  std::vector<double> losses;
  losses.reserve(std::size_t(steps));
  for (int step = 1; step <= steps; ++step) {
    const Tensor ids = integers(Rng(5).split(std::uint32_t(step)), {16, kLength + 1}, 8);
    const Tape tape = Tape::record(true);
    flat.zero_gradients();
    const LanguageModelLoss out = autoregressive_loss(model, Scope{.tape = tape, .training = true}, ids);
    (void)tape.backward(out.loss);
    adamw_step(AdamW{}, step, 1e-2, flat.values, flat.gradients, flat.first_moment, flat.second_moment, {&all, 1});
    losses.push_back(out.loss.value.item());
  }
  return losses;
}

double mean_of_last(const std::vector<double>& xs, std::size_t count) {
  double sum = 0;
  for (std::size_t i = xs.size() - count; i < xs.size(); ++i) sum += xs[i];
  return sum / double(count);
}

}  // namespace

void walk(Page& page) {
  page.step("Row t knows tokens 0 .. t");
  page.text(
      "A language model reads a text once and makes a prediction at every position: row t of its output is its guess "
      "at token t + 1. All rows are trained at the same time. That is only fair if row t was computed from tokens 0 "
      ".. t alone. Such a model is called causal.");
  const SinkhornTransformerLM model(small_model(2), Rng(1), DType::f64);
  const Tensor real = influence_on_logits(model);
  page.text(
      "Here is a real one: 2 layers, {} tokens in buckets of {}. Token s (column) was replaced by another one, and "
      "each cell of row t says how far the outputs at t moved, as a power of ten. An empty cell did not move:",
      kLength, kBucket);
  page.picture(drawing::heat_map(page.style(), powers_of_ten(real),
                                 {.low = -5, .high = 0, .row_label = "output t", .column_label = "changed token s"}));
  page.text(
      "Cells above the diagonal that moved: {}. Not little: not at all, in no bit. A plain attention layer gets "
      "there with one triangular mask. Ours chooses among buckets, and a choice can betray the future in more ways "
      "than one. This lesson closes the doors, one after the other.",
      above_the_diagonal(real));

  page.step("A triangle over buckets");
  page.text(
      "In lesson 11 every bucket of queries chose buckets of keys. Which may it choose? Not a later one. And not its "
      "own either: the chosen block is seen whole by all queries of the bucket, so its first query would see its "
      "last key. (Its own bucket is attended to separately, under the usual triangle.) What remains are the buckets "
      "strictly before. The library's table of what bucket u (row) may choose:");
  const Tensor open = causal_choices(1, 1, kBuckets, kBucket, 1, {}).reshape({kBuckets, 1 + kBuckets});
  std::vector<std::vector<std::string>> rows;
  for (std::int64_t u = 0; u < kBuckets; ++u) {
    std::vector<std::string> row{"bucket " + std::to_string(u)};
    for (std::int64_t j = 0; j <= kBuckets; ++j)
      row.emplace_back(open.span<bool>()[u * (1 + kBuckets) + j] ? "yes" : "-");
    rows.push_back(row);
  }
  page.picture(drawing::table(page.style(), {"", "null", "0", "1", "2", "3"}, rows));
  page.text(
      "A mask that asks `j <= u` instead of `j < u` looks like every triangle you have seen, and leaks. The weight "
      "of a choice must respect the table, too: it is a softmax over the scores, and a sum that runs over closed "
      "columns knows them. So closed scores become minus infinity before anything is computed from them.");

  page.step("Null buckets");
  page.text(
      "The first row of that table has one \"yes\": bucket 0 has nothing before it. So the sequence gets n more "
      "buckets in front, the null buckets, n being the number of blocks a bucket chooses. One learned key and one "
      "learned value per head stand in all of their slots; their score is always 0. Here is what two heads with "
      "random queries chose (n = 1):");
  const TwoHeads two(Rng(4));
  const Routing routing = two.routing();
  std::vector<std::vector<std::string>> picks;
  for (std::int64_t u = 0; u < kBuckets; ++u) {
    std::vector<std::string> row{"bucket " + std::to_string(u)};
    for (std::int64_t head = 0; head < 2; ++head) {
      const auto at = std::size_t(head * kBuckets + u);
      row.push_back(block_name(routing.picks.span<std::int32_t>()[at]));
      row.push_back(drawing::number(routing.weights.value.span<double>()[at], 3));
    }
    picks.push_back(row);
  }
  page.picture(drawing::table(page.style(), {"", "head 0 chose", "weight", "head 1 chose", "weight"}, picks));
  page.text(
      "Null buckets do three things. Bucket 0 always has something to choose, so every bucket makes n choices "
      "however short the text is: a model that made fewer on short texts would give a beginning other outputs than "
      "the same beginning of a longer text. A bucket may decline: if all scores are below 0, the null wins. And what "
      "it sees then is learned.");

  page.step("A question must not know its own bucket");
  page.text(
      "What does a bucket ask with? Looking both ways, it was the mean of its queries. But a choice made with the "
      "bucket's last query is used by its first one. So a causal bucket asks with what is known at its first token: "
      "the mean of all queries up to there. Change the last query of bucket 1 (token 7) and see how far the first "
      "number of each bucket's question moves:");
  const auto questions = [&](const Tensor& q, Summary kind) {
    return slice(bucket_summary(q, kind, kBucket, 0), 1, 0, 1).value.reshape({kBuckets, 4});
  };
  const Tensor other = two.q.clone();
  for (std::int64_t e = 0; e < 4; ++e) other.span<double>()[std::size_t((7 * 2 + 0) * 4 + e)] += 1;
  std::vector<std::vector<std::string>> moves;
  for (std::int64_t u = 0; u < kBuckets; ++u) {
    std::vector<std::string> row{"bucket " + std::to_string(u)};
    for (const Summary kind : {Summary::mean, Summary::mean_at_first}) {
      const double before = questions(two.q, kind).to_vector()[std::size_t(u) * 4];
      row.push_back(drawing::number(questions(other, kind).to_vector()[std::size_t(u) * 4] - before, 3));
    }
    moves.push_back(row);
  }
  page.picture(drawing::table(page.style(), {"", "mean of the bucket", "mean up to its first token"}, moves));
  page.text(
      "With the mean of the bucket, tokens 4 to 6 would look where token 7 wanted to look. Keys have no such "
      "trouble: a bucket that may be chosen is complete, so all of its tokens lie in the past. The sort net's scores "
      "are these, with a 0 for each null:");
  page.code("nn/sort_net.cpp", "const Var queries = bucket_summary(q, Summary::mean_at_first");
  page.code("nn/sort_net.cpp",
            "const Var real = scale(matmul(queries, keys, false, true), 1 / std::sqrt(double(s[3])));");

  page.step("Rotation: every head has its seams elsewhere");
  page.text(
      "The triangles cost something. Tokens 4, 8 and 12 are the first of their buckets. Of its own bucket such a "
      "token sees itself alone, and the token right before it only if that one's bucket happens to be chosen. Here "
      "is where head 0 really looks; the value of token s was changed, and a dark cell in row t means output t moved:");
  const Tensor plain = influence(kLength, [&](std::int64_t s) { return two.output(0, s); });
  const Tensor turned = influence(kLength, [&](std::int64_t s) { return two.output(1, s); });
  page.picture(drawing::heat_map(page.style(), moved_at_all(plain), {.low = 0, .high = 1, .row_label = "output t"}));
  page.text(
      "So the second half of the heads sees the sequence rotated to the left by b - 1 = {}. Slot 0 of its first "
      "bucket holds token {}, and its seams lie one token earlier than those of head 0:",
      kBucket - 1, kBucket - 1);
  page.picture(drawing::heat_map(page.style(), moved_at_all(turned), {.low = 0, .high = 1, .row_label = "output t"}));
  page.text(
      "Between them, every token sees the one before it in at least one head, whatever is chosen. (A square block to "
      "the left of the staircase is a chosen bucket; rows without one chose the null.)");

  page.step("What the rotation wraps around");
  Tensor tokens({kLength}, DType::f64);
  for (std::int64_t t = 0; t < kLength; ++t) tokens.span<double>()[std::size_t(t)] = double(t);
  page.text(
      "Rotating moves tokens 0, 1 and 2 to the far end. The tokens in the slots of a rotated head, a bucket a line:");
  page.picture(drawing::values(page.style(), rotate(Var(tokens), 0, kBucket - 1).value.reshape({kBuckets, kBucket})));
  page.text(
      "In the last bucket, slot order is no longer time order. Token 0 stands behind token 15, and this bucket may "
      "choose buckets full of later tokens. So in the last bucket of a rotated head, slots 1 .. b-1 see neither the "
      "chosen block nor slot 0; they see each other, under the triangle. The composed attention says so in two lines:");
  page.code("autograd/visibility.h", "const bool wrapped = is_rotated");
  page.code("autograd/visibility.h", "const bool visible = !causal");
  page.text("In the last picture those are the first three rows: a small triangle of their own.");

  page.step("How a leak shows");
  page.text(
      "Let us open one door on purpose: every bucket chooses itself. Nothing crashes, no shape changes. The "
      "influence on the outputs of a model with one layer:");
  SinkhornTransformerLM sound(small_model(1), Rng(2)), leaky(small_model(1), Rng(2));
  leaky.stack().use_attention_twin(choose_yourself);
  const Tensor leak = influence_on_logits(leaky);
  page.picture(drawing::heat_map(page.style(), moved_at_all(leak), {.low = 0, .high = 1, .row_label = "output t"}));
  page.text(
      "{} cells above the diagonal moved. Now both models are trained for 200 steps on random symbols, 8 of them, "
      "all equally likely. There is nothing to learn: the best possible loss is log 8 (lesson 8).",
      above_the_diagonal(leak));
  const double possible = std::log(8.0);
  const std::vector<double> honest = train_on_noise(sound, 200), cheating = train_on_noise(leaky, 200);
  page.picture(drawing::bars(
      page.style(),
      {{"log 8", possible}, {"causal model", mean_of_last(honest, 20)}, {"leaky model", mean_of_last(cheating, 20)}}));
  page.text("The leaky model's loss, step by step:");
  page.picture(drawing::curve(page.style(), cheating, 6));
  page.text(
      "A loss below what is possible is the mark of a leak, and it always looks like success. Believe it last. "
      "`sinkhorn train` warns when a loss falls below what is known to be possible; `sinkhorn leak-check` changes "
      "later tokens and compares every head's earlier outputs bit for bit; and `sinkhorn leak-check --plant "
      "no-wrap-mask` shows what it says to the mistake of the last step.");

  page.step("Your turn");
  page.text(
      "exercise.cpp is the whole rule of this lesson in plain loops: scores, triangle with the null block, choice "
      "and weight, own bucket, rotation for half of the heads. Five mistakes are planted in it. Mend them.\n\n"
      "The checks change everything behind each position in turn, by a little and by a thousand, and compare the "
      "outputs before it bit for bit. They change single rows to see that all that is allowed still has its "
      "influence, so hiding everything does not help. And they compare with the library, for one head and several, "
      "for buckets of 1 to 4. Each failure names a head, a row and what moved it.");
}

Quiz quiz(Rng rng) {
  const RandomBits bits = rng.bits();
  const auto between = [&](std::uint64_t i, std::int64_t low, std::int64_t high) {
    return low + std::int64_t(bits.word(i)) % (high - low + 1);
  };
  const std::int64_t b = between(0, 3, 9), buckets = between(1, 4, 9), n = between(2, 1, 3);
  const std::int64_t u = between(3, 1, buckets - 1);
  // How many columns of the library's table are open to bucket u.
  const Tensor open = causal_choices(1, 1, buckets, b, n, {});
  std::int64_t candidates = 0;
  for (std::int64_t j = 0; j < n + buckets; ++j) candidates += open.span<bool>()[std::size_t(u * (n + buckets) + j)];

  const std::int64_t t = between(4, 1, buckets * b - 2);
  Tensor order({buckets * b}, DType::i32);
  for (std::int64_t i = 0; i < buckets * b; ++i) order.span<std::int32_t>()[std::size_t(i)] = std::int32_t(i);
  const Tensor turned = rotate(Var(order), 0, b - 1).value;
  const std::int64_t slot = between(5, 0, buckets * b - 1);
  const std::int64_t symbols = between(6, 3, 60);
  const std::string text_of_length = fmt::format("A text has {} tokens, in buckets of {}.", buckets * b, b);
  return {
      Question::about_number(
          fmt::format("{} With n = {}, among how many buckets, null and real, may bucket {} choose (counted from "
                      "0)?",
                      text_of_length, n, u),
          double(candidates), "all null buckets, and the buckets strictly before it", 0),
      Question::about_number(fmt::format("{} Which token stands in slot {} of a rotated head (both counted from 0)?",
                                         text_of_length, slot),
                             double(turned.span<std::int32_t>()[std::size_t(slot)]), "token (slot + b - 1) mod T", 0),
      Question::about_number(
          fmt::format("{} Of its own bucket, how many tokens does token {} see in a head that is not rotated, itself "
                      "included?",
                      text_of_length, t),
          double(t % b + 1), "those from the bucket's first token to itself", 0),
      Question::about_number(
          fmt::format(
              "Symbols are drawn at random from {}, all equally likely. Below which loss (in nats) does a model "
              "certainly leak?",
              symbols),
          std::log(double(symbols)), "the log of the number of symbols: no guess can be better on average"),
      Question::with_choices(
          "In training, a model's loss falls far below what anyone else reports. What do you do first?",
          {"change later tokens and see whether earlier outputs move", "train it longer", "raise the learning rate",
           "report it"},
          "too good is the usual look of a leak, and the test takes seconds"),
      Question::with_choices(
          "Why does a causal bucket ask with the queries up to its first token, not with those of the whole bucket?",
          {"the choice made for the bucket is used by its first query, too", "it is faster",
           "later queries have larger norms", "the null bucket needs it"},
          "a choice carries information from whatever it was computed from"),
  };
}

}  // namespace sinkhorn::lessons::lesson_15_causality
