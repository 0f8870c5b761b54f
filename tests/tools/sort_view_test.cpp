// The Sinkhorn viewer: its matrices are the op's and the model's, its keys and pictures, and the program on a terminal.
#include "tools/sort_view.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <nlohmann/json.hpp>
#include <numeric>
#include <regex>

#include "autograd/gradcheck.h"
#include "autograd/ops.h"
#include "tests/shared.h"
#include "tests/tools/program.h"
#include "tests/tools/terminal.h"
#include "tools/sort_picture.h"

namespace sinkhorn {
namespace {

namespace fs = std::filesystem;
using drawing::Style;
using testing::contains;
using testing::content_of;
using testing::Outcome;
using testing::run_program;
using testing::TemporaryFolder;
using testing::Terminal;
using testing::Words;

using Json = nlohmann::json;

const SortHead& first_head(const SortSource& source) { return source.layers.front().heads.front(); }

/// A head (rows, columns) of f32 log scores whose columns `closed` hold no token.
SortHead head_of(std::int64_t rows, std::int64_t columns, const std::vector<std::int64_t>& closed = {}) {
  SortHead head;
  head.scores = normal(Rng(11), {rows, columns}, 0, 2);
  head.open = Tensor::full({columns}, 1, DType::boolean);
  for (const std::int64_t j : closed) head.open.data<bool>()[j] = false;
  return head;
}

SortHead top_k_head(std::int64_t buckets, std::int64_t nulls, std::int64_t n) {
  SortHead head;
  head.by_top_k = true;
  head.nulls = nulls;
  head.scores = normal(Rng(5), {buckets, nulls + buckets}, 0, 1);
  for (std::int64_t u = 0; u < buckets; ++u)
    for (std::int64_t j = 0; j < buckets; ++j)
      if (nulls > 0 && j >= u)
        head.scores.data<float>()[u * (nulls + buckets) + nulls + j] = -std::numeric_limits<float>::infinity();
  const TopK chosen = top_k(Var(head.scores), n, 0.75);
  head.picks = chosen.picks;
  head.weights = chosen.weights.value;
  return head;
}

SortSource model_source(const std::vector<SortHead>& heads) {
  SortSource source;
  source.name = "run/best.safetensors";
  source.model = SortModel{0.75, 5};
  for (const char* name : {"layer 1 of 2", "layer 2 of 2"}) {
    SortLayer layer;
    layer.name = name;
    layer.heads = heads;
    source.layers.push_back(layer);
  }
  return source;
}

// ---- the matrices ----

TEST(SortSteps, EveryIterationIsTheOpWithAsManyIterations) {
  const SortSource random = random_scores(6, 3);
  const SortHead closed = head_of(5, 7, {0, 4});
  for (const SortHead* head : {&first_head(random), &closed})
    for (const bool noise : {false, true})
      for (const bool causal : {false, true})
        for (const double temperature : {0.2, 0.75, 3.0}) {
          const SortSetting setting{temperature, noise, 8, 2, causal};
          // The op's input, said once more with plain loops.
          const Shape s = head->scores.shape();
          const DType dtype = head->scores.dtype();
          std::vector<double> z = head->scores.to_vector();
          const std::vector<double> g = gumbel(Rng(8).split(1).split(2), s, dtype).to_vector();
          for (std::int64_t i = 0; i < s[0]; ++i)
            for (std::int64_t j = 0; j < s[1]; ++j) {
              double& x = z[std::size_t(i * s[1] + j)];
              if (noise) x += g[std::size_t(i * s[1] + j)];
              x = causal && j > i ? -std::numeric_limits<double>::infinity() : x / temperature;
            }
          const Tensor input = Tensor::from(z, s);
          const Tensor open = head->open ? head->open : Tensor::full({s[1]}, 1, DType::boolean);
          SortSteps steps(*head, setting, 12);
          for (std::int64_t k = 12; k >= 1; --k) {
            const Tensor want = sinkhorn(Var(input), open, k).value, got = steps.matrix(k);
            EXPECT_LE(relative_error(got.to(DType::f64), want), dtype == DType::f64 ? 1e-14 : 1e-5) << k;
            EXPECT_TRUE(equal_bits(got, sinkhorn(Var(sinkhorn_input(*head, setting)), open, k).value)) << k;
            if (!head->open && !causal) {
              EXPECT_LE(relative_error(got, composed_sinkhorn(Var(input), k).value), 1e-12) << k;
            }
          }
        }
}

TEST(SortSteps, IterationZeroIsTheExponentialOverItsLargest) {
  const SortSource source = random_scores(5, 1);
  SortSteps steps(first_head(source), {.temperature = 0.5}, 3);
  const std::vector<double> z = first_head(source).scores.to_vector(), got = steps.matrix(0).to_vector();
  const double largest = *std::max_element(z.begin(), z.end());
  for (std::size_t i = 0; i < z.size(); ++i) EXPECT_NEAR(got[i], std::exp((z[i] - largest) / 0.5), 1e-14);
  SortHead far = first_head(source);  // exp of these alone would be infinite
  far.scores = Tensor::from(std::vector<double>{1e6, 0, 0, 1e6}, {2, 2});
  for (const double x : SortSteps(far, {.temperature = 0.001}, 1).matrix(0).to_vector()) EXPECT_TRUE(x == 0 || x == 1);
}

TEST(SortSteps, ErrorsAreThoseOfTheShownMatrix) {
  const SortHead head = head_of(4, 6, {5});
  SortSteps steps(head, {}, 8);
  int computed = 0;
  while (steps.compute_one()) ++computed;
  EXPECT_EQ(computed, 9);
  for (std::int64_t k = 0; k <= 8; ++k) {
    const std::vector<double> m = steps.matrix(k).to_vector();
    double rows = 0, columns = 0;
    for (std::size_t i = 0; i < 4; ++i) {
      double sum = 0;
      for (std::size_t j = 0; j < 6; ++j) sum += m[i * 6 + j];
      rows = std::max(rows, std::abs(sum - 5.0 / 4));  // five columns are there to share
    }
    for (std::size_t j = 0; j < 5; ++j) {
      double sum = 0;
      for (std::size_t i = 0; i < 4; ++i) sum += m[i * 6 + j];
      columns = std::max(columns, std::abs(sum - 1));
    }
    for (std::size_t i = 0; i < 4; ++i) EXPECT_EQ(m[i * 6 + 5], 0);
    ASSERT_TRUE(steps.known_errors()[std::size_t(k)]);
    EXPECT_NEAR(steps.errors(k).rows, rows, 1e-12) << k;
    EXPECT_NEAR(steps.errors(k).columns, columns, 1e-12) << k;
    EXPECT_GT(rows, 1e-12) << "the numbers must be worth comparing";
  }
}

TEST(SortSteps, EndDoublyStochastic) {
  const SortSource source = random_scores(9, 4);
  SortSteps steps(first_head(source), {.temperature = 0.75, .noise = true}, 200);
  EXPECT_GT(steps.errors(1).rows, 1e-2);
  EXPECT_LT(steps.errors(200).rows, 1e-9);
  EXPECT_LT(steps.errors(200).columns, 1e-9);
}

TEST(SortSteps, TheCausalMaskKeepsTheFutureAtZeroAndLeadsToTheIdentity) {
  const SortSource source = random_scores(5, 2);
  SortSteps steps(first_head(source), {.noise = true, .causal = true}, 200);
  double before = 0;
  for (const std::int64_t k : {0, 1, 2, 5, 20, 200}) {
    const std::vector<double> m = steps.matrix(k).to_vector();
    double diagonal = 1;
    for (std::size_t i = 0; i < 5; ++i) {
      for (std::size_t j = i + 1; j < 5; ++j) EXPECT_EQ(m[i * 5 + j], 0) << k;
      diagonal = std::min(diagonal, m[i * 5 + i]);
    }
    if (k >= 2) {
      EXPECT_GT(diagonal, before) << k;
      before = diagonal;
    }
  }
  EXPECT_GT(before, 0.95);
}

TEST(ChooseBuckets, IsTheOpAndItsMatrix) {
  const SortHead head = top_k_head(6, 2, 2);
  const SortChoice same = choose_buckets(head, 0.75), hot = choose_buckets(head, 50);
  EXPECT_TRUE(equal_bits(same.picks, head.picks));
  EXPECT_TRUE(equal_bits(same.weights, head.weights));
  EXPECT_FALSE(equal_bits(hot.weights, head.weights));
  const std::vector<double> dense = same.matrix.to_vector(), weights = same.weights.to_vector();
  double sum = 0;
  for (std::int64_t u = 0; u < 6; ++u)
    for (std::int64_t i = 0; i < 2; ++i) {
      const std::int64_t pick = same.picks.data<std::int32_t>()[u * 2 + i];
      EXPECT_EQ(dense[std::size_t(u * 8 + pick)], weights[std::size_t(u * 2 + i)]);
      EXPECT_LT(pick, 2 + u) << "a later bucket";
      sum += weights[std::size_t(u * 2 + i)];
    }
  EXPECT_NEAR(std::accumulate(dense.begin(), dense.end(), 0.0), sum, 1e-6);
}

// ---- scores from a file ----

TEST(ParseScores, ReadsNumbersHoweverTheyAreParted) {
  const SortSource source = parse_scores("# a comment\n1, -2.5;3e0\r\n\n  +4\t5 6 # behind\n7 8 -9", "m.txt");
  EXPECT_EQ(first_head(source).scores.shape(), (Shape{3, 3}));
  EXPECT_EQ(first_head(source).scores.to_vector(), (std::vector<double>{1, -2.5, 3, 4, 5, 6, 7, 8, -9}));
}

TEST(ParseScores, SaysWhatIsWrongAndWhere) {
  std::string wide, tall;
  for (int i = 0; i < 1025; ++i) wide += "1 ", tall += "1\n";
  const std::vector<std::pair<std::string, Words>> table = {{"", {"holds no numbers"}},
                                                            {"# nothing\n\n", {"holds no numbers"}},
                                                            {"1 2\n3\n", {"line 2", "1 numbers", "line 1 has 2"}},
                                                            {"1 2\n\n3 4 5\n", {"line 3", "3 numbers"}},
                                                            {"1 2 3\n4 5 6\n", {"2 rows of 3", "square"}},
                                                            {"1 nan\n2 3\n", {"line 1", "expected a number", "nan"}},
                                                            {"1 2\n3 inf\n", {"line 2", "inf", "too large"}},
                                                            {"1 1e400\n2 3\n", {"line 1", "1e400", "too large"}},
                                                            {"1 -2e6\n2 3\n", {"line 1", "-2e6", "too large"}},
                                                            {"1 two\n", {"line 1", "\"two\""}},
                                                            {"1 2x\n", {"line 1", "\"2x\""}},
                                                            {"1 --2\n", {"\"--2\""}},
                                                            {"+ 2\n3 4", {"\"+\""}},
                                                            {wide, {"1025 numbers in a row", "1024"}},
                                                            {tall, {"more than 1024 rows"}}};
  for (const auto& [text, parts] : table) {
    try {
      parse_scores(text, "m.txt");
      ADD_FAILURE() << "taken: " << text.substr(0, 40);
    } catch (const DataError& error) {
      EXPECT_TRUE(contains(error.what(), "m.txt")) << error.what();
      for (const std::string& part : parts) EXPECT_TRUE(contains(error.what(), part)) << part << ": " << error.what();
    }
  }
}

// ---- keys ----

Key key(char32_t character) { return {Key::Kind::character, character}; }

TEST(SortKeys, MoveThroughIterationsAndStopAtTheEnds) {
  const SortSource source = random_scores(4, 1);
  SortState state;
  state.iterations = 3;
  const auto at = [&](const Key& pressed_key) {
    state = pressed(state, pressed_key, source);
    return state.iteration;
  };
  EXPECT_EQ(at({Key::Kind::left}), 0);
  EXPECT_EQ(at({Key::Kind::right}), 1);
  EXPECT_EQ(at(key('l')), 2);
  EXPECT_EQ(at(key('l')), 3);
  EXPECT_EQ(at({Key::Kind::right}), 3);
  EXPECT_EQ(at(key('h')), 2);
  EXPECT_EQ(at({Key::Kind::home}), 0);
  EXPECT_EQ(at({Key::Kind::end}), 3);
  EXPECT_EQ(at(key('0')), 0);
  EXPECT_EQ(at(key('G')), 3);
  EXPECT_EQ(at({Key::Kind::redraw}), 3);
  EXPECT_FALSE(state.exit_code);
}

TEST(SortKeys, ChangeTheSetting) {
  const SortSource source = random_scores(4, 1);
  const SortState start;
  const auto after = [&](const std::string& keys) {
    SortState state = start;
    for (const char c : keys) state = pressed(state, key(char32_t(c)), source);
    return state;
  };
  EXPECT_EQ(after("+").setting.temperature, 0.9);
  EXPECT_EQ(after("=").setting.temperature, 0.9);
  EXPECT_EQ(after("-").setting.temperature, 0.6);
  EXPECT_EQ(after("--++").setting.temperature, 0.75);
  EXPECT_EQ(after(std::string(40, '+')).setting.temperature, 100);
  EXPECT_EQ(after(std::string(40, '-')).setting.temperature, 0.01);
  SortState odd = start;
  odd.setting.temperature = 0.8;  // between two rungs
  EXPECT_EQ(pressed(odd, key('+'), source).setting.temperature, 0.9);
  EXPECT_EQ(pressed(odd, key('-'), source).setting.temperature, 0.75);
  EXPECT_TRUE(after("N").setting.noise);
  EXPECT_EQ(after("NN").setting, start.setting);
  EXPECT_TRUE(after("n").setting.noise);
  EXPECT_EQ(after("n").setting.draw, 0u);
  EXPECT_EQ(after("nnn").setting.draw, 2u);
  EXPECT_TRUE(after("c").setting.causal);
  EXPECT_FALSE(after("cc").setting.causal);
  EXPECT_TRUE(after("s").save);
  EXPECT_TRUE(contains(after("x").note, "?"));
  EXPECT_EQ(after("xl").note, "");
}

TEST(SortKeys, HelpGoesAwayWithAnyKeyAndQuittingHasItsCodes) {
  const SortSource source = random_scores(4, 1);
  SortState help = pressed(SortState{}, key('?'), source);
  EXPECT_TRUE(help.help);
  const SortState back = pressed(help, key('l'), source);
  EXPECT_FALSE(back.help);
  EXPECT_EQ(back.iteration, 0) << "the key only closes the help";
  EXPECT_FALSE(pressed(help, {Key::Kind::escape}, source).exit_code);
  EXPECT_EQ(pressed(help, key('q'), source).exit_code, 0);
  EXPECT_EQ(pressed(SortState{}, key('q'), source).exit_code, 0);
  EXPECT_EQ(pressed(SortState{}, {Key::Kind::escape}, source).exit_code, 0);
  EXPECT_EQ(pressed(SortState{}, {Key::Kind::interrupt}, source).exit_code, 130);
  EXPECT_EQ(pressed(SortState{}, {Key::Kind::closed}, source).exit_code, 130);
}

TEST(SortKeys, WalkThroughHeadsAndLayers) {
  const SortSource source = model_source({head_of(4, 4), top_k_head(4, 2, 2), head_of(4, 6)});
  SortState state;
  const auto press = [&](char32_t c) { state = pressed(state, key(c), source); };
  press(']');
  EXPECT_EQ(state.head, 1u);
  for (const char32_t c : {U'l', U'n', U'N', U'c'}) {
    const SortState before = state;
    press(c);
    EXPECT_EQ(state.setting, before.setting);
    EXPECT_EQ(state.iteration, before.iteration);
    EXPECT_TRUE(contains(state.note, "top-k")) << state.note;
  }
  press('}');
  EXPECT_EQ(state.layer, 1u);
  EXPECT_EQ(state.head, 1u);
  press('}');
  EXPECT_EQ(state.layer, 0u);
  press('{');
  EXPECT_EQ(state.layer, 1u);
  press('[');
  EXPECT_EQ(state.head, 0u);
  press('c');
  EXPECT_TRUE(state.setting.causal);
  press('[');
  EXPECT_EQ(state.head, 2u);
  EXPECT_FALSE(state.setting.causal) << "there are more key buckets than query buckets";
  press('c');
  EXPECT_FALSE(state.setting.causal);
  EXPECT_TRUE(contains(state.note, "as many"));
  const SortSource alone = random_scores(3, 1);
  for (const char32_t c : {U'[', U']', U'{', U'}'}) EXPECT_NE(pressed(SortState{}, key(c), alone).note, "");
}

// ---- rendering ----

std::vector<std::string> lines_of(const std::string& text) {
  std::vector<std::string> lines;
  std::istringstream in(text);
  for (std::string line; std::getline(in, line);) lines.push_back(line);
  return lines;
}

TEST(SortRender, FitsEveryWindow) {
  std::vector<SortSource> sources;
  for (const std::int64_t buckets : {1, 2, 16, 70}) sources.push_back(random_scores(buckets, 1));
  for (const std::int64_t buckets : {1, 5, 40}) sources.push_back(model_source({top_k_head(buckets, 2, 2)}));
  sources.push_back(model_source({head_of(3, 50, {2}), head_of(50, 3)}));
  sources.back().remarks = {"The text has 1000 tokens; the model reads at most 512, so the first 512 are shown."};
  sources.push_back(random_scores(3, 1));
  sources.back().name = "a very long name/" + std::string(150, 'x') + "é\x1b[2J";
  for (const SortSource& source : sources) {
    for (const bool colour : {false, true})
      for (const bool unicode : {false, true})
        for (int columns = 40; columns <= 120; columns += columns < 82 ? 3 : 19)
          for (const int rows : {14, 19, 24, 60}) {
            for (const char* keys : {"", "lll", "?", "cn+", "x", "]"}) {
              SortView view(source, SortState{});
              for (const char* c = keys; *c; ++c) view.press(key(char32_t(*c)));
              view.compute_one();
              const std::string picture = view.render(Style{columns, colour, unicode}, rows);
              const std::vector<std::string> lines = lines_of(picture);
              ASSERT_LE(int(lines.size()), rows) << picture;
              ASSERT_GE(lines.size(), 5u) << picture;
              for (const std::string& line : lines) ASSERT_LE(drawing::width(line), columns) << line << "\n" << picture;
              ASSERT_TRUE(colour || picture.find('\x1b') == std::string::npos) << picture;
              ASSERT_FALSE(contains(picture, "[2J") && contains(picture, "\x1b[2J"))
                  << "a name must not clear the screen";
              const bool ascii = !unicode && !contains(source.name, "é");
              ASSERT_TRUE(!ascii || std::all_of(picture.begin(), picture.end(), [](char c) { return c >= 0; }))
                  << picture;
            }
          }
  }
}

TEST(SortRender, ShowsIterationSettingErrorsAndKeys) {
  SortView view(random_scores(16, 1), SortState{});
  const Style style;
  EXPECT_TRUE(contains(view.render(style, 24), "Sorting matrix, iteration 0 of 20"));
  for (const char c : std::string("lllN+")) view.press(key(char32_t(c)));
  while (view.compute_one()) {
  }
  const std::string picture = view.render(style, 24);
  SortSteps steps(first_head(view.source()), view.state().setting, 20);
  for (const std::string& part :
       {std::string("iteration 3 of 20"), std::string("random scores, 16 x 16 buckets, seed 1"),
        std::string("temperature 0.9, noise on (draw 1), causal mask off"),
        "rows     " + drawing::number(steps.errors(3).rows, 3),
        "columns  " + drawing::number(steps.errors(3).columns, 3), std::string("log10 of the rows' error"),
        std::string("? help"), std::string("q quit")})
    EXPECT_TRUE(contains(picture, part)) << part << " is not in\n" << picture;
  EXPECT_TRUE(contains(picture, "\n 15 ") && !contains(picture, "mean of")) << "80 x 24 show 16 rows whole:\n"
                                                                            << picture;
  view.press(key('l'));
  EXPECT_NE(view.render(style, 24), picture);
}

TEST(SortRender, TheCurveGrowsAndTheMarkMoves) {
  SortView view(random_scores(8, 1), SortState{});
  const auto dots = [&] {
    const std::string picture = view.render({.unicode = false}, 24);
    const std::size_t curve = picture.find("log10");
    return std::count(picture.begin() + std::ptrdiff_t(std::min(curve, picture.size())), picture.end(), '*');
  };
  const auto mark = [&] {
    for (const std::string& line : lines_of(view.render({.unicode = false}, 24)))
      if (line.find('^') != std::string::npos) return line.find('^');
    return std::string::npos;
  };
  const auto few = dots();
  while (view.compute_one()) {
  }
  EXPECT_GT(dots(), few + 15);
  const std::size_t first = mark();
  view.press(key('l'));
  view.press(key('l'));
  EXPECT_EQ(mark(), first + 2);
}

TEST(SortRender, AsksForALargerWindow) {
  SortView view(random_scores(8, 1), SortState{});
  for (const auto& [columns, rows] : {std::pair(39, 24), {80, 13}, {10, 3}, {1, 1}}) {
    const std::string picture = view.render(Style{columns, false, true}, rows);
    EXPECT_LE(int(lines_of(picture).size()), rows);
    for (const std::string& line : lines_of(picture)) EXPECT_LE(drawing::width(line), columns);
    EXPECT_FALSE(contains(picture, "Sorting matrix"));
  }
  EXPECT_TRUE(contains(view.render(Style{39, false, true}, 24), "40 x 14"));
}

TEST(SortRender, TopKShowsScoresPicksAndWeights) {
  SortView view(model_source({top_k_head(6, 2, 2)}), SortState{});
  const std::string picture = view.render({}, 40);
  const SortChoice choice = choose_buckets(view.source().layers[0].heads[0], 0.75);
  for (const std::string& part : {std::string("Routing by top-k"), std::string("scores: 2 nulls, then buckets"),
                                  std::string("weights of the picks"), std::string("not by Gumbel-Sinkhorn"),
                                  std::string("layer 1 of 2, head 1 of 1")})
    EXPECT_TRUE(contains(picture, part)) << part << " is not in\n" << picture;
  for (const std::string& line : choice_lines(view.source().layers[0].heads[0], choice))
    EXPECT_TRUE(contains(picture, line)) << line;
  EXPECT_TRUE(contains(picture, "query 0    null 1") || contains(picture, "query 0    null 2")) << picture;
}

// ---- pictures ----

SortPicture picture_of(const SortSource& source, std::int64_t iterations = 4, std::optional<std::int64_t> only = {}) {
  SortState state;
  state.iterations = iterations;
  return sort_picture(source, state, only);
}

TEST(SortPictures, JsonHoldsEveryMatrixToTheBit) {
  const SortSource source = random_scores(5, 7);
  const Json json = Json::parse(to_json(picture_of(source)));
  SortSteps steps(first_head(source), {}, 4);
  ASSERT_EQ(json["iterations"].size(), 5u);
  for (std::int64_t k = 0; k <= 4; ++k) {
    const Json& one = json["iterations"][std::size_t(k)];
    EXPECT_EQ(one["iteration"], k);
    std::vector<double> values;
    for (const Json& row : one["matrix"])
      for (const Json& x : row) values.push_back(x.get<double>());
    EXPECT_EQ(values, steps.matrix(k).to_vector()) << k;
    EXPECT_EQ(one["row_error"].get<double>(), steps.errors(k).rows);
    EXPECT_EQ(one["column_error"].get<double>(), steps.errors(k).columns);
  }
  EXPECT_EQ(json["setting"]["temperature"], 0.75);
  const Json top = Json::parse(to_json(picture_of(model_source({top_k_head(4, 1, 2)}))));
  EXPECT_EQ(top["routing"], "top-k");
  EXPECT_TRUE(top["scores"][0][1].is_null()) << "a closed bucket";
  EXPECT_EQ(top["picks"].size(), 4u);
  EXPECT_TRUE(top["picks"][0][1] == -1) << "one null and nothing else to choose";
}

TEST(SortPictures, SvgIsWellFormedAndShowsAllIterations) {
  for (const SortSource& source : {random_scores(5, 7), random_scores(100, 7), model_source({top_k_head(9, 2, 2)})}) {
    const std::string svg = to_svg(picture_of(source));
    std::vector<std::string> open;  // every tag is closed in its order
    const std::regex tag("<(/?)([a-z]+)[^<>]*?(/?)>");
    for (auto at = std::sregex_iterator(svg.begin(), svg.end(), tag); at != std::sregex_iterator(); ++at) {
      if ((*at)[3].length() > 0) continue;
      if ((*at)[1].length() == 0) {
        open.push_back((*at)[2]);
      } else {
        ASSERT_FALSE(open.empty());
        ASSERT_EQ(open.back(), (*at)[2].str());
        open.pop_back();
      }
    }
    EXPECT_TRUE(open.empty());
    EXPECT_FALSE(contains(svg, "nan") || contains(svg, "inf\"") || contains(svg, "href")) << svg.substr(0, 400);
    EXPECT_TRUE(contains(svg, "prefers-color-scheme: dark"));
    const bool top_k = source.model.has_value();
    for (const char* part : {"iteration 0", "iteration 4", "polyline class=\"rows\"", "polyline class=\"columns\""})
      EXPECT_EQ(contains(svg, part), !top_k) << part;
    EXPECT_EQ(contains(svg, ">weights<"), top_k);
  }
  EXPECT_TRUE(contains(to_svg(picture_of(random_scores(100, 7))), "Each cell is the mean of 3 x 3."));
}

TEST(SortPictures, ThePageHoldsItsDataAndNeedsNoNetwork) {
  SortSource source = random_scores(5, 7);
  source.name = "</script><script>alert(1)</script> & \"é\"\xff";
  for (const std::int64_t iterations : {1, 4}) {
    const std::string page = to_html(picture_of(source, iterations));
    const std::string begin = "const data = ";
    const std::size_t from = page.find(begin) + begin.size(), until = page.find(";\n", from);
    const Json data = Json::parse(page.substr(from, until - from));
    ASSERT_EQ(data["frames"].size(), std::size_t(iterations + 1));
    SortSteps steps(first_head(source), {}, iterations);
    const std::vector<double> want = steps.matrix(1).to_vector();
    for (std::size_t i = 0; i < 25; ++i)
      EXPECT_NEAR(data["frames"][1]["values"][i / 5][i % 5].get<double>(), want[i], 1e-3 * want[i]);
    EXPECT_EQ(data["frames"][1]["errors"][0].get<double>(), steps.errors(1).rows);
    for (const char* foreign : {"http:", "https:", "src=", "<link", "@import", "url(", "fetch("})
      EXPECT_FALSE(contains(page, foreign)) << foreign;
    for (const char* part : {"type=\"range\"", "ArrowLeft", "prefers-color-scheme: dark", "mousemove"})
      EXPECT_TRUE(contains(page, part)) << part;
    EXPECT_FALSE(contains(page, "alert(1)</script>")) << "a name must not become a script";
  }
  const std::string svg = to_svg(picture_of(source));
  EXPECT_TRUE(contains(svg, "&lt;/script&gt;") && !contains(svg, "<script"));
}

TEST(SortPictures, AveragesEqualGroups) {
  Tensor matrix({5, 5}, DType::f64);
  for (std::int64_t i = 0; i < 25; ++i) matrix.data<double>()[i] = double(i);
  EXPECT_EQ(averaged(matrix, 5).group, 1);
  const Averaged small = averaged(matrix, 3);
  EXPECT_EQ(small.group, 2);
  EXPECT_EQ(small.values.to_vector(), (std::vector<double>{3, 5, 6.5, 13, 15, 16.5, 20.5, 22.5, 24}));
}

// ---- the program ----

class SortProgram : public ::testing::Test {
 protected:
  Outcome run(Words words, const testing::Setup& setup = {}) const {
    words.insert(words.begin(), "sort-view");
    return run_program(place.path, words, setup);
  }
  void expect_refusal(int code, const Words& words, const Words& parts, const std::string& input = "") const {
    const Outcome got = run(words, {.input = input});
    EXPECT_EQ(got.code, code) << got.out << got.err;
    EXPECT_EQ(std::count(got.err.begin(), got.err.end(), '\n'), 1) << got.err;
    EXPECT_EQ(got.out, "");
    for (const auto& part : parts) EXPECT_TRUE(contains(got.err, part)) << part << " is not in: " << got.err;
  }
  fs::path in(const std::string& name) const { return place.path / name; }

  TemporaryFolder place;
};

TEST_F(SortProgram, PrintsAllIterationsPlainlyWhereNoTerminalIs) {
  const Outcome got = run({"--buckets", "5", "--iterations", "3"});
  EXPECT_EQ(got.code, 0) << got.err;
  EXPECT_EQ(got.out.find('\x1b'), std::string::npos);
  for (const char* part : {"iteration 0 ", "iteration 1 ", "iteration 2 ", "iteration 3 "})
    EXPECT_TRUE(contains(got.out, part)) << part;
  for (const std::string& line : lines_of(got.out)) EXPECT_LE(drawing::width(line), 80) << line;
  EXPECT_EQ(got.out, run({"--buckets", "5", "--iterations", "3", "--all", "--threads", "1"}).out);
  EXPECT_NE(got.out, run({"--buckets", "5", "--iterations", "3", "--seed", "2"}).out);
  const Outcome one = run({"--buckets", "5", "--iteration", "2"});
  EXPECT_TRUE(contains(one.out, "iteration 2 ") && !contains(one.out, "iteration 1 ")) << one.out;
}

TEST_F(SortProgram, ReadsScoresFromAFile) {
  std::ofstream(in("m.txt")) << "0 1\n1 0\n";
  const Json json =
      Json::parse(run({"--scores", "m.txt", "--temperature", "0.5", "--iteration", "1", "--json", "-"}).out);
  const double e = std::exp(2.0);
  EXPECT_NEAR(json["iterations"][0]["matrix"][0][1].get<double>(), e / (1 + e), 1e-12);
  EXPECT_NEAR(json["iterations"][0]["matrix"][1][1].get<double>(), 1 / (1 + e), 1e-12);
  EXPECT_EQ(run({"--scores", "-"}, {.input = "0 1\n1 0\n"}).code, 0);
}

TEST_F(SortProgram, WritesFilesWholeOrNotAtAll) {
  const Outcome got = run({"--buckets", "4", "--svg", "a.svg", "--html", "a.html", "--json", "a.json"});
  EXPECT_EQ(got.code, 0) << got.err;
  for (const char* name : {"a.svg", "a.html", "a.json"}) {
    EXPECT_TRUE(contains(got.out, std::string("wrote ") + name)) << got.out;
    EXPECT_GT(fs::file_size(in(name)), 500u);
  }
  EXPECT_EQ(content_of(in("a.svg")), run({"--buckets", "4", "--svg", "-"}).out);
  EXPECT_EQ(content_of(in("a.html")), run({"--buckets", "4", "--html", "-", "--svg", "b.svg"}).out);
  fs::create_directory(in("folder"));
  expect_refusal(3, {"--svg", "missing/a.svg"}, {"missing/a.svg"});
  expect_refusal(3, {"--html", "folder"}, {"folder"});
  for (const auto& entry : fs::directory_iterator(place.path))
    EXPECT_FALSE(contains(entry.path().filename(), ".tmp")) << entry.path();
}

TEST_F(SortProgram, RefusesWhatMakesNoSense) {
  expect_refusal(2, {"--buckets", "0"}, {"--buckets"});
  expect_refusal(2, {"--buckets", "1025"}, {"--buckets"});
  expect_refusal(2, {"--iterations", "0"}, {"--iterations"});
  expect_refusal(2, {"--iteration", "21"}, {"--iteration 21", "--iterations 20"});
  expect_refusal(2, {"--temperature", "1e-9"}, {"--temperature"});
  expect_refusal(2, {"--temperature", "-1"}, {"--temperature"});
  expect_refusal(2, {"--json", "-", "--svg", "-"}, {"standard output"});
  expect_refusal(2, {"--buckets", "1024", "--iterations", "200", "--all"}, {"--iteration"});
  expect_refusal(2, {"--checkpoint", "x", "--scores", "y"}, {"--checkpoint", "--scores"});
  expect_refusal(2, {"--checkpoint", "x", "--prompt", "a", "--text", "b"}, {"--prompt", "--text"});
  expect_refusal(2, {"--checkpoint", "x"}, {"--prompt", "--text"});
  expect_refusal(2, {"--prompt", "x"}, {"--checkpoint"});
  expect_refusal(2, {"--head", "2"}, {"--checkpoint"});
  expect_refusal(2, {"--part", "middle"}, {"--part", "encoder"});
  expect_refusal(2, {"--bukets", "3"}, {"--buckets"});
  expect_refusal(3, {"--checkpoint", "missing", "--prompt", "a"}, {"missing"});
  expect_refusal(3, {"--scores", "missing.txt"}, {"missing.txt"});
  expect_refusal(3, {"--scores", "."}, {"folder"});
  expect_refusal(3, {"--scores", "-"}, {"no numbers"});
  expect_refusal(3, {"--scores", "-"}, {"line 2", "nan"}, "1 2\n3 nan\n");
}

// ---- on a terminal ----

class SortTerminal : public SortProgram {
 protected:
  static bool hands_over_single_keys(const Terminal& terminal) {
    return !(terminal.attributes().c_lflag & (ICANON | ECHO));
  }
  static bool same_attributes(const termios& a, const termios& b) {
    return a.c_iflag == b.c_iflag && a.c_oflag == b.c_oflag && a.c_cflag == b.c_cflag && a.c_lflag == b.c_lflag &&
           std::equal(std::begin(a.c_cc), std::end(a.c_cc), std::begin(b.c_cc));
  }
};

TEST_F(SortTerminal, KeysMoveThroughItAndItLeavesTheTerminalAsItWas) {
  Terminal terminal(place.path, {"sort-view", "--buckets", "8"});
  const termios before = terminal.before();
  EXPECT_TRUE(before.c_lflag & ICANON);
  ASSERT_TRUE(terminal.wait_for("iteration 0 of 20")) << terminal.screen();
  EXPECT_TRUE(hands_over_single_keys(terminal));
  terminal.type("\x1b[C");
  EXPECT_TRUE(terminal.wait_for("iteration 1 of 20")) << terminal.screen();
  terminal.type("ll");
  EXPECT_TRUE(terminal.wait_for("iteration 3 of 20"));
  terminal.type("h+n");
  EXPECT_TRUE(terminal.wait_for("iteration 2 of 20"));
  EXPECT_TRUE(terminal.wait_for("temperature 0.9, noise on (draw 1)"));
  terminal.type("?");
  EXPECT_TRUE(terminal.wait_for("goes back"));
  terminal.type(" q");
  EXPECT_EQ(terminal.wait(), 0) << terminal.screen();
  EXPECT_TRUE(same_attributes(terminal.attributes(), before));
  EXPECT_TRUE(contains(terminal.screen(), "\x1b[?1049h"));
  const std::string& all = terminal.screen();
  EXPECT_GT(all.rfind("\x1b[?25h"), all.rfind("\x1b[?25l")) << "the cursor is shown again";
  EXPECT_GT(all.rfind("\x1b[?1049l"), all.rfind("\x1b[?1049h")) << "and what stood on the screen";
}

TEST_F(SortTerminal, EveryEndRestoresTheTerminal) {
  struct End {
    std::string keys;
    int signal, code;
  };
  for (const End& end : {End{"\x1b", 0, 0}, End{"\x03", 0, 130}, End{"", SIGTERM, 130}, End{"", SIGINT, 130},
                         End{"", SIGHUP, 130}, End{"", SIGSEGV, 1000 + SIGSEGV}, End{"", SIGABRT, 1000 + SIGABRT}}) {
    Terminal terminal(place.path, {"sort-view", "--buckets", "8"});
    const termios before = terminal.before();
    ASSERT_TRUE(terminal.wait_for("iteration 0 of 20"));
    ASSERT_TRUE(hands_over_single_keys(terminal));
    terminal.type(end.keys);
    if (end.signal) terminal.send(end.signal);
    EXPECT_EQ(terminal.wait(), end.code) << end.signal;
    EXPECT_TRUE(same_attributes(terminal.attributes(), before)) << end.signal;
    EXPECT_GT(terminal.screen().rfind("\x1b[?25h"), terminal.screen().rfind("\x1b[?25l")) << end.signal;
  }
}

TEST_F(SortTerminal, CtrlZGivesTheTerminalBackUntilItGoesOn) {
  Terminal terminal(place.path, {"sort-view", "--buckets", "8"});
  const termios before = terminal.before();
  ASSERT_TRUE(terminal.wait_for("iteration 0 of 20"));
  terminal.type("\x1a");
  ASSERT_TRUE(terminal.wait_for("\x1b[?1049l"));
  // It has no shell above it that could stop and go on with it, so it may go on at once; a signal does no harm.
  terminal.send(SIGCONT);
  ASSERT_TRUE(terminal.wait_for("\x1b[?1049h")) << "it takes the terminal again";
  ASSERT_TRUE(terminal.wait_for("iteration 0 of 20"));
  terminal.type("lq");
  EXPECT_TRUE(terminal.wait_for("iteration 1 of 20"));
  EXPECT_EQ(terminal.wait(), 0);
  EXPECT_TRUE(same_attributes(terminal.attributes(), before));
}

TEST_F(SortTerminal, FollowsTheWindowAndNoColor) {
  Terminal terminal(place.path, {"sort-view", "--buckets", "16"}, {{"NO_COLOR", "1"}}, 100, 30);
  ASSERT_TRUE(terminal.wait_for("q quit"));
  EXPECT_FALSE(contains(terminal.screen(), "38;5")) << "no colours were wanted";
  terminal.resize(30, 10);
  EXPECT_TRUE(terminal.wait_for("40 x 14")) << terminal.screen();
  terminal.resize(60, 20);
  EXPECT_TRUE(terminal.wait_for("Sorting matrix, iteration 0"));
  terminal.type("q");
  EXPECT_EQ(terminal.wait(), 0);
  Terminal coloured(place.path, {"sort-view", "--buckets", "4"});
  ASSERT_TRUE(coloured.wait_for("q quit"));
  EXPECT_TRUE(contains(coloured.screen(), "38;5"));
}

TEST_F(SortTerminal, SavesUnderANameThatIsFree) {
  Terminal terminal(place.path, {"sort-view", "--buckets", "4"});
  ASSERT_TRUE(terminal.wait_for("iteration 0 of 20"));
  terminal.type("s");
  EXPECT_TRUE(terminal.wait_for("Saved sort-view-1.svg")) << terminal.screen();
  terminal.type("s");
  EXPECT_TRUE(terminal.wait_for("Saved sort-view-2.svg")) << terminal.screen();
  terminal.type("q");
  EXPECT_EQ(terminal.wait(), 0);
  EXPECT_EQ(content_of(in("sort-view-1.svg")), run({"--buckets", "4", "--svg", "-"}).out);
}

TEST_F(SortTerminal, AllAndOtherOutputsArePlainThereToo) {
  Terminal terminal(place.path, {"sort-view", "--buckets", "4", "--iterations", "2", "--all"});
  EXPECT_EQ(terminal.wait(), 0);
  EXPECT_TRUE(contains(terminal.screen(), "iteration 2"));
  EXPECT_FALSE(contains(terminal.screen(), "\x1b[?1049h"));
  Terminal dumb(place.path, {"sort-view", "--buckets", "4", "--iterations", "2"}, {{"TERM", "dumb"}});
  EXPECT_EQ(dumb.wait(), 0);
  EXPECT_EQ(dumb.screen().find('\x1b'), std::string::npos);
}

// ---- checkpoints ----

class SortCheckpoint : public SortProgram {
 protected:
  void SetUp() override {
    std::ofstream text(in("text.txt"));
    for (int i = 0; i < 200; ++i) text << "The quick brown fox jumps over " << i << " lazy dogs.\n";
  }
  void train(const Words& more) const {
    Words words = {"train", "--dim", "16", "--heads", "4", "--steps", "4", "--batch-size", "2", "--sample-length", "3"};
    words.insert(words.end(), more.begin(), more.end());
    const Outcome got = run_program(place.path, words);
    ASSERT_EQ(got.code, 0) << got.err;
  }
  void train_text(const Words& more = {}) const {
    Words words = {"--data", "text.txt", "--depth", "2", "--bucket-size", "8", "--seq-len", "64", "--out", "run"};
    words.insert(words.end(), more.begin(), more.end());
    train(words);
  }
  void train_pair(const Words& more = {}) const {
    Words words = {"--task",
                   "copy",
                   "--task-length",
                   "8",
                   "--depth",
                   "2",
                   "--bucket-size",
                   "2",
                   "--encoder-decoder",
                   "--no-non-permutative",
                   "--sinkhorn-iter",
                   "7",
                   "--temperature",
                   "0.6",
                   "--out",
                   "pair"};
    words.insert(words.end(), more.begin(), more.end());
    train(words);
  }
  /// All sources of a checkpoint reading `text`.
  SortSource source(const std::string& run, const std::string& text, const HeadChoice& choice = {}) const {
    HeadPlace found;
    return checkpoint_scores(in(run), text, "text", choice, found);
  }
};

TEST_F(SortCheckpoint, GumbelSinkhornHeadsShowWhatTheModelComputes) {
  train_pair();
  for (const std::string text : {"12345678", "1234567", "12"}) {  // the second leaves half a bucket empty
    const SortSource all = source("pair", text);
    ASSERT_EQ(all.layers.size(), 6u) << "two layers of the encoder, and two with two attentions of the decoder";
    ASSERT_TRUE(all.model);
    EXPECT_EQ(all.model->iterations, 7);
    EXPECT_EQ(all.model->temperature, 0.6);
    for (std::size_t l = 0; l < 6; ++l) {
      ASSERT_EQ(all.layers[l].heads.size(), 4u);
      for (const SortHead& head : all.layers[l].heads) {
        EXPECT_EQ(head.by_top_k, l >= 2) << all.layers[l].name;
        if (head.by_top_k) {
          const SortChoice choice = choose_buckets(head, 0.6);
          EXPECT_TRUE(equal_bits(choice.picks, head.picks) && equal_bits(choice.weights, head.weights));
          EXPECT_EQ(head.nulls, all.layers[l].part == "cross" ? 0 : 2);
        } else {
          SortSteps steps(head, {.temperature = 0.6}, 7);
          EXPECT_TRUE(equal_bits(steps.matrix(7), head.matrix)) << all.layers[l].name << " head " << head.number;
          EXPECT_EQ(head.scores.shape(), (Shape{std::int64_t(text.size() + 1) / 2, std::int64_t(text.size() + 1) / 2}));
        }
      }
    }
    if (text.size() == 2) continue;  // one bucket has no choice
    EXPECT_FALSE(equal_bits(all.layers[0].heads[0].matrix, all.layers[0].heads[1].matrix));
    EXPECT_FALSE(equal_bits(all.layers[0].heads[0].matrix, all.layers[1].heads[0].matrix));
  }
  const Outcome got = run({"--checkpoint", "pair", "--prompt", "12345678", "--layer", "2", "--head", "3"});
  EXPECT_EQ(got.code, 0) << got.err;
  EXPECT_TRUE(contains(got.out, "encoder layer 2 of 2, head 3 of 4")) << got.out;
  EXPECT_TRUE(contains(got.out, "temperature 0.6")) << got.out;
  const Outcome cross = run({"--checkpoint", "pair", "--prompt", "12345678", "--part", "cross", "--layer", "2"});
  EXPECT_TRUE(contains(cross.out, "decoder layer 2 of 2, cross-attention")) << cross.out << cross.err;
  EXPECT_TRUE(contains(cross.out, "not by Gumbel-Sinkhorn")) << cross.out;
  expect_refusal(2, {"--checkpoint", "pair", "--prompt", "123", "--part", "cross", "--noise"}, {"top-k", "--noise"});
  expect_refusal(2, {"--checkpoint", "pair", "--prompt", "123", "--part", "cross", "--iteration", "1"},
                 {"--iteration"});
  expect_refusal(3, {"--checkpoint", "pair", "--prompt", "xyz"}, {"--prompt", "'x'"});
}

TEST_F(SortCheckpoint, BucketsWithoutATokenStayClosed) {
  train_pair({"--use-simple-sort-net"});  // its encoder takes one length, to which sources are padded
  const SortSource all = source("pair", "123");
  const SortHead& head = all.layers[0].heads[0];
  const std::int64_t buckets = head.scores.shape()[1];
  ASSERT_GT(buckets, 2);
  SortSteps steps(head, {.temperature = 0.6}, 7);
  EXPECT_TRUE(equal_bits(steps.matrix(7), head.matrix));
  for (const std::int64_t k : {0, 1, 7}) {
    const std::vector<double> m = steps.matrix(k).to_vector();
    for (std::int64_t u = 0; u < buckets; ++u)
      for (std::int64_t v = 0; v < buckets; ++v) EXPECT_EQ(m[std::size_t(u * buckets + v)] == 0, v >= 2) << k;
  }
  EXPECT_LT(steps.errors(7).columns, 1e-5) << "closed columns are no error";
}

TEST_F(SortCheckpoint, CausalHeadsShowTheirTopK) {
  train_text({"--n-local-attn-heads", "1"});
  const std::string text = "The quick brown fox jumps over 1 lazy dogs.";
  const SortSource all = source("run", text);
  ASSERT_EQ(all.layers.size(), 2u);
  ASSERT_EQ(all.layers[0].heads.size(), 3u);
  EXPECT_EQ(all.layers[0].local_heads, 1);
  const std::vector<bool> rotated = {false, true, true};
  for (std::size_t h = 0; h < 3; ++h) {
    const SortHead& head = all.layers[1].heads[h];
    EXPECT_EQ(head.number, std::int64_t(h) + 2);
    EXPECT_EQ(head.rotated, rotated[h]);
    EXPECT_TRUE(head.by_top_k);
    EXPECT_EQ(head.scores.shape(), (Shape{6, 2 + 6}));
    const SortChoice choice = choose_buckets(head, all.model->temperature);
    EXPECT_TRUE(equal_bits(choice.picks, head.picks) && equal_bits(choice.weights, head.weights));
  }
  const Words words = {"--checkpoint", "run", "--prompt", text, "--layer", "2", "--head", "3"};
  const Outcome got = run(words);
  for (const char* part : {"layer 2 of 2, head 3 of 4 (rotated)", "not by Gumbel-Sinkhorn", "2 nulls, then key buckets",
                           "query 5 ", "scores", "weights"})
    EXPECT_TRUE(contains(got.out, part)) << part << " is not in\n" << got.out << got.err;
  for (const std::string& line : lines_of(got.out)) EXPECT_LE(drawing::width(line), 80) << line;
  std::ofstream(in("prompt.txt")) << text;
  EXPECT_EQ(got.out, run({"--checkpoint", "run", "--text", "prompt.txt", "--layer", "2", "--head", "3"}).out);
  const std::vector<double> scores = all.layers[1].heads[1].scores.to_vector();
  const Json json = Json::parse(run(Words(words) + Words{"--json", "-"}).out);
  EXPECT_EQ(json["scores"][5][3].get<double>(), scores[5 * 8 + 3]);
  EXPECT_TRUE(json["scores"][0][3].is_null());
  const Outcome cut = run({"--checkpoint", "run", "--prompt", text + text});
  EXPECT_TRUE(contains(cut.out, "86 tokens") && contains(cut.out, "first 64")) << cut.out << cut.err;

  const Words prompt = {"--checkpoint", "run", "--prompt", "The"};
  expect_refusal(2, prompt + Words{"--head", "1"}, {"head 1 of layer 1 of 2 is a local head", "heads 2 to 4 have"});
  expect_refusal(2, prompt + Words{"--head", "5"}, {"--head 5", "1 to 4"});
  expect_refusal(2, prompt + Words{"--layer", "3"}, {"--layer 3", "1 to 2"});
  expect_refusal(2, prompt + Words{"--part", "encoder"}, {"--part encoder", "language model"});
  expect_refusal(3, {"--checkpoint", "run", "--prompt", "The #"}, {"--prompt", "'#'"});
  std::ofstream(in("empty.txt")) << "";
  expect_refusal(3, {"--checkpoint", "run", "--text", "empty.txt"}, {"empty.txt", "is empty"});
  expect_refusal(3, {"--checkpoint", "run", "--text", "missing.txt"}, {"missing.txt"});

  Terminal terminal(place.path, {"sort-view", "--checkpoint", "run", "--prompt", text});
  ASSERT_TRUE(terminal.wait_for("layer 1 of 2, head 2 of 4")) << terminal.screen();
  terminal.type("]");
  EXPECT_TRUE(terminal.wait_for("layer 1 of 2, head 3 of 4 (rotated)"));
  terminal.type("}");
  EXPECT_TRUE(terminal.wait_for("layer 2 of 2, head 3 of 4 (rotated)"));
  terminal.type("q");
  EXPECT_EQ(terminal.wait(), 0);
}

TEST_F(SortCheckpoint, LocalHeadsAloneHaveNothingToShow) {
  train_text({"--n-local-attn-heads", "4"});
  expect_refusal(2, {"--checkpoint", "run", "--prompt", "The"}, {"all 4 heads", "local", "--n-local-attn-heads"});
  train_pair({"--n-local-attn-heads", "4"});
  EXPECT_TRUE(contains(run({"--checkpoint", "pair", "--prompt", "1234"}).out, "cross-attention"));
  expect_refusal(2, {"--checkpoint", "pair", "--prompt", "1234", "--part", "encoder"},
                 {"of the encoder", "local", "cross-attention", "heads 1 to 4 have one"});
}

}  // namespace
}  // namespace sinkhorn
