#include <cmath>
#include <numbers>
#include <sstream>

#include "autograd/ops.h"
#include "notebooks/kit/lesson.h"

namespace sinkhorn::lessons::lesson_13_gumbel {
namespace {

constexpr std::int64_t kDraws = 100000;

Tensor row(const std::vector<double>& numbers) { return Tensor::from(numbers, {1, std::int64_t(numbers.size())}); }

Tensor scores() { return row({2, 1, 0, -1}); }

// The column of the largest entry of each row.
std::vector<std::int32_t> largest(const Var& x) {
  const Tensor picks = top_k(x, 1, 1).picks;
  return {picks.span<std::int32_t>().begin(), picks.span<std::int32_t>().end()};
}

// How often each of 4 columns wins, as a share of the draws.
std::vector<double> frequencies(const Tensor& noise) {
  std::vector<double> won(4);
  for (const std::int32_t pick : largest(add(scores(), noise))) won[std::size_t(pick)] += 1 / double(noise.shape()[0]);
  return won;
}

Tensor gumbel_draws() { return gumbel(Rng(20), {kDraws, 4}, DType::f64); }

std::vector<std::pair<std::string, double>> labelled(const std::vector<double>& numbers) {
  std::vector<std::pair<std::string, double>> result;
  result.reserve(numbers.size());
  for (const double x : numbers) result.emplace_back("column " + std::to_string(result.size()), x);
  return result;
}

// Pictures of equal height, next to each other.
std::string beside(const std::vector<std::string>& pictures) {
  std::vector<std::string> lines;
  for (const std::string& picture : pictures) {
    std::istringstream in(picture);
    std::string line;
    for (std::size_t i = 0; std::getline(in, line); ++i) {
      if (i == lines.size()) lines.emplace_back();
      lines[i] += "  " + drawing::pad_right(line, 14);
    }
  }
  std::string result;
  for (const std::string& line : lines) result += line + "\n";
  return result;
}

void by_chance(Page& page) {
  page.step("Choose by chance");
  page.text(
      "A model that always takes what it thinks best never learns what the others would have brought. So let it "
      "choose by chance, but not blindly: what has the larger score shall come more often, with just the shares of "
      "softmax. Four scores:");
  const std::vector<double> share = softmax(Var(scores())).value.to_vector();
  page.values("scores", scores());
  page.values("shares", softmax(Var(scores())).value);
  page.text(
      "There is a curious way to draw: add a random number to each score, and take the largest sum. With the right "
      "kind of random numbers, called Gumbel noise, each column wins as often as its share says. In {} draws by the "
      "library:",
      kDraws);
  const std::vector<double> won = frequencies(gumbel_draws());
  page.picture(drawing::bars(page.style(), labelled(won)));
  const std::vector<double> bell =
      frequencies(normal(Rng(15), {kDraws, 4}, 0, std::numbers::pi / std::sqrt(6.0), DType::f64));
  std::vector<std::vector<std::string>> rows;
  for (std::size_t j = 0; j < 4; ++j)
    rows.push_back({std::to_string(j), fmt::format("{:.4f}", share[j]), fmt::format("{:.4f}", won[j]),
                    fmt::format("{:.4f}", bell[j])});
  page.picture(drawing::table(page.style(), {"column", "softmax", "Gumbel noise", "normal noise"}, rows));
  page.text(
      "The last column shows that not any noise will do: normal noise of the same spread misses the shares. What is "
      "so special about Gumbel's?");
}

void noise(Page& page) {
  page.step("What Gumbel noise is");
  page.text(
      "Take a number U, uniform between 0 and 1, and two logarithms:\n\n  G = -log(-log U)\n\nThe numbers used above "
      "by size, in percent. It leans to the right: large values are rare, but they come.");
  const Tensor g = gumbel_draws();
  std::vector<std::pair<std::string, double>> bins;
  for (int bin = -2; bin < 7; ++bin) bins.emplace_back(fmt::format("{:2} .. {:2}", bin, bin + 1), 0);
  for (const double x : g.span<double>()) {
    const int bin = int(std::floor(x)) + 2;
    if (bin >= 0 && bin < int(bins.size())) bins[std::size_t(bin)].second += 100 / double(g.count());
  }
  page.picture(drawing::bars(page.style(), bins));
  const double middle = mean(Var(g)).value.item(), variance = mean(square(scale(Var(g), 1, -middle))).value.item();
  page.picture(drawing::table(
      page.style(), {"", "counted", "known"},
      {{"mean", fmt::format("{:.4f}", middle), fmt::format("{:.4f}, Euler's constant", std::numbers::egamma)},
       {"variance", fmt::format("{:.4f}", variance),
        fmt::format("{:.4f}, pi^2 / 6", std::numbers::pi * std::numbers::pi / 6)}}));
}

void race(Page& page) {
  page.step("Why it works: a race");
  page.text(
      "-log U is how long one waits for a bus that comes at any moment with the same chance, once a minute on "
      "average. Divide by a rate r, and it is the wait for a bus that comes r times a minute. Now let several lines "
      "serve one stop. The chance that the first bus is of line j is\n\n  r_j / (r_0 + r_1 + ...)\n\n"
      "With r_j = exp(score_j) this is softmax: whose wait is shortest is a fair draw. And the shortest wait is the "
      "largest score plus noise, as one sees by taking the logarithm, which keeps the order, and a minus, which "
      "turns it round:\n\n"
      "  wait_j = -log(U_j) / exp(score_j)\n"
      "  -log(wait_j) = score_j - log(-log U_j) = score_j + G_j\n\n"
      "One draw in full, and who wins either way:");
  const RandomBits bits = Rng(20).bits();
  const Tensor g = gumbel_draws();
  const std::vector<double> s = scores().to_vector();
  std::vector<std::vector<std::string>> rows;
  for (std::size_t j = 0; j < 4; ++j) {
    const double u = bits.uniform<double>(j), wait = -std::log(u) / std::exp(s[j]);
    rows.push_back({std::to_string(j), drawing::number(s[j]), fmt::format("{:.4f}", u), fmt::format("{:.4f}", wait),
                    fmt::format("{:.4f}", g.to_vector()[j]), fmt::format("{:.4f}", s[j] + g.to_vector()[j])});
  }
  page.picture(drawing::table(page.style(), {"line", "score", "U", "wait", "G", "score + G"}, rows));
  Tensor waits({kDraws, 4}, DType::f64);
  for (std::int64_t i = 0; i < waits.count(); ++i)
    waits.span<double>()[i] = -std::log(bits.uniform<double>(std::uint64_t(i))) / std::exp(s[std::size_t(i % 4)]);
  const std::vector<std::int32_t> first = largest(neg(waits)), best = largest(add(scores(), g));
  std::int64_t agree = 0;
  for (std::size_t i = 0; i < first.size(); ++i) agree += first[i] == best[i];
  page.text("In {} races the shortest wait and the largest sum named the same line {} times.", kDraws, agree);
}

void ends(Page& page) {
  page.step("Both ends");
  page.text(
      "The computer's random numbers are words of 32 bits, 0 to 4294967295. Divided by 2^32 they lie between 0 and "
      "1, but one of them is 0, and in f32 the last ones are rounded to 1. Both are fatal: log 0 is minus infinity. "
      "The library takes 23 bits, adds a half, and divides by 2^23:");
  page.code("autograd/rng.h", "static constexpr T to_uniform(");
  std::vector<std::vector<std::string>> rows;
  for (const std::uint32_t word : {0u, 512u, 0x80000000u, 0xFFFFFFFFu}) {
    const float naive = float(word) / 4294967296.0f, u = RandomBits::to_uniform<float>(word);
    rows.push_back({std::to_string(word), fmt::format("{:.8f}", naive),
                    drawing::number(double(-std::log(-std::log(naive)))), fmt::format("{:.8f}", u),
                    drawing::number(double(-std::log(-std::log(u))))});
  }
  page.picture(drawing::table(page.style(), {"word", "word / 2^32", "its G", "the library's U", "its G"}, rows));
  page.text(
      "So noise lies between {} and {}, always. An infinite score makes a NaN of its row, and soon of the whole "
      "model. It happens once in some ten million draws: after hours of training, long after the tests have passed. "
      "Many programs add a small number inside the logarithms instead; that helps, and bends the noise a little.",
      drawing::number(-std::log(-std::log(RandomBits::to_uniform<double>(0)))),
      drawing::number(-std::log(-std::log(RandomBits::to_uniform<double>(0xFFFFFFFFu)))));
}

void temperature(Page& page) {
  page.step("From hard to soft");
  page.text(
      "The largest sum is an index, and an index has no slope. The old remedy helps again: softmax in the place of "
      "the argmax. A temperature t says how hard:\n\n  y = softmax((score + G) / t)\n\n"
      "One draw of the noise, five temperatures:");
  const Tensor g = gumbel(Rng(16), {1, 4}, DType::f64);
  page.values("scores + G", add(scores(), g).value, 3);
  std::vector<Var> soft;
  std::vector<std::vector<std::string>> names;
  for (const double t : {5.0, 1.0, 0.5, 0.1, 0.02}) {
    soft.push_back(softmax(scale(add(scores(), g), 1 / t)));
    std::vector<std::string> line{drawing::number(t)};
    for (const double y : soft.back().value.to_vector()) line.push_back(fmt::format("{:.3f}", y));
    names.push_back(line);
  }
  page.picture(drawing::table(page.style(), {"t", "y_0", "y_1", "y_2", "y_3"}, names));
  page.picture(drawing::heat_map(page.style(), concat(soft, 0).value, {.low = 0, .high = 1, .row_label = "falling t"}));
  page.text(
      "A high temperature melts everything into equal shares, a low one freezes it into a single 1: an honest draw. "
      "What does it do to the gradient? Here is the derivative of y_0 by score 0, over 2000 draws:");
  std::vector<std::vector<std::string>> rows;
  const Tensor many = gumbel(Rng(17), {2000, 4}, DType::f64);
  for (const double t : {5.0, 1.0, 0.5, 0.1, 0.02}) {
    std::int64_t flat = 0;
    double most = 0;
    const Tensor y = softmax(scale(add(scores(), many), 1 / t)).value;
    for (std::int64_t i = 0; i < 2000; ++i) {
      const double slope = y.span<double>()[i * 4] * (1 - y.span<double>()[i * 4]) / t;
      flat += slope < 1e-3;
      most = std::max(most, slope);
    }
    rows.push_back({drawing::number(t), fmt::format("{:.0f} %", 100 * double(flat) / 2000), drawing::number(most, 3)});
  }
  page.picture(drawing::table(page.style(), {"t", "draws with a slope below 0.001", "largest slope"}, rows));
  page.text(
      "Hard choices learn by rare, violent jerks; soft ones smoothly, about something that is not yet a choice. The "
      "temperature is a compromise. The published model takes 0.75.");
}

void gumbel_sinkhorn(Page& page) {
  page.step("Gumbel-Sinkhorn");
  page.text(
      "The same noise on a matrix of scores, and Sinkhorn normalisation in the place of softmax: a random soft "
      "permutation. The scores are those of a sort net, after the logarithm; N buckets may go to N places. Here for "
      "5 buckets without noise, and with three draws, temperature 0.25:");
  const Tensor x = normal(Rng(18), {5, 5}, 0, 1, DType::f64);
  auto sorted = [&](const Var& with, const std::string& title) {
    return drawing::heat_map(page.style(), sinkhorn(scale(with, 4), {}, 20).value,
                             {.low = 0, .high = 1, .column_label = title});
  };
  std::vector<std::string> pictures{sorted(x, "no noise")};
  for (std::uint32_t draw = 0; draw < 3; ++draw)
    pictures.push_back(sorted(add(x, gumbel(Rng(19).split(draw), {5, 5}, DType::f64)), fmt::format("draw {}", draw)));
  page.picture(beside(pictures));
  page.text(
      "Rows are places, columns are buckets. The three draws are three different sortings, each near to one that the "
      "scores allow. This is how the library makes it:");
  page.code("nn/sort_net.cpp", "Var SortNet::sorting_matrix(");
  page.text(
      "scope.split(2).gumbel() returns noise in training only: a model that is used must not roll dice about where "
      "to look, or it would answer differently each time. One caveat: with softmax the draws follow the shares "
      "exactly. For permutations nobody can compute the shares, there are N! of them; Gumbel-Sinkhorn comes close to "
      "a fair draw, and that is enough to learn.");
}

}  // namespace

void walk(Page& page) {
  by_chance(page);
  noise(page);
  race(page);
  ends(page);
  temperature(page);
  gumbel_sinkhorn(page);

  page.step("Your turn");
  page.text(
      "Write gumbel, gumbel_noise, sample, relaxed and relaxed_backward. The file as it stands is infinite at word "
      "0, gives all elements the same noise, and always draws column 0.\n\n"
      "The checks try both ends, compare your noise with the library's, count 20000 draws against softmax with a "
      "wide margin, and compare your gradients, that of the temperature too, with the tape and with numeric "
      "differences.");
}

Quiz quiz(Rng rng) {
  auto rounded = [&](std::uint32_t tag, double low, double high, double steps) {
    return std::round(uniform(rng.split(tag), {1}, low, high).item() * steps) / steps;
  };
  const double u = rounded(0, 0.05, 0.95, 100), a = rounded(1, -1, 1, 10), b = rounded(2, 1.1, 3, 10);
  const double first = rounded(3, 1, 2, 10), second = rounded(4, -1, 0.5, 10), t = rounded(5, 0.2, 2, 10);
  const double rate = rounded(6, 2, 9, 1), other = rounded(7, 1, 9, 1);
  const Tensor s = row({rounded(8, -1, 1, 10), rounded(9, -1, 1, 10), rounded(10, -1, 1, 10)}),
               g = row({rounded(11, -1, 1, 100), rounded(12, 0, 2, 100), rounded(13, -1, 3, 100)});
  const std::vector<double> sv = s.to_vector(), gv = g.to_vector();
  return {
      Question::about_number(fmt::format("U is {}. What is the Gumbel noise?", u), -std::log(-std::log(u)),
                             "-log(-log U), natural logarithms"),
      Question::about_number(
          fmt::format("Two scores are {} and {}. Gumbel noise is added to each. With which chance does the first win?",
                      a, b),
          softmax(Var(row({a, b}))).value.to_vector()[0], "its share in softmax"),
      Question::about_number(fmt::format("Scores {}, {}, {}; noise {}, {}, {}. Which column (0, 1 or 2) is drawn?",
                                         sv[0], sv[1], sv[2], gv[0], gv[1], gv[2]),
                             double(largest(add(s, g))[0]), "the one with the largest sum", 0),
      Question::about_number(
          fmt::format("score + G is {} and {} in two columns; the temperature is {}. What is y of the first?", first,
                      second, t),
          softmax(scale(row({first, second}), 1 / t)).value.to_vector()[0],
          "softmax of the sums, each divided by the temperature"),
      Question::about_number(
          fmt::format(
              "Line 0 sends {} buses an hour, line 1 sends {}, all at random. With which chance is the next bus of "
              "line 0?",
              rate, other),
          rate / (rate + other), "its rate over the sum of the rates"),
      Question::with_choices(
          "The temperature goes to 0. What does softmax((score + G) / t) become?",
          {"a fair draw: 1 in one column, which is random", "always 1 in the column of the best score", "equal shares",
           "the shares of softmax(score)"},
          "the noise is divided by t as well, so it still decides"),
      Question::with_choices(
          "Why does the library add noise in training only?",
          {"so that using a model gives the same answer each time", "because noise has no gradient",
           "because it would take too long", "because softmax is not used in evaluation"},
          "in training the noise makes the model try other sortings; in use it shall take the best it knows"),
  };
}

}  // namespace sinkhorn::lessons::lesson_13_gumbel
