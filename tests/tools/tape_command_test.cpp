// `sinkhorn tape`: its numbers are the tape's, its pictures are whole, its keys do what they say.
#include "tools/tape_command.h"

#include <gtest/gtest.h>

#include <cmath>
#include <nlohmann/json.hpp>
#include <regex>
#include <set>
#include <sstream>

#include "autograd/gradcheck.h"
#include "tests/shared.h"
#include "tests/tools/program.h"
#include "tests/tools/terminal.h"
#include "tools/tape_graph.h"

namespace sinkhorn {
namespace {

using testing::contains;

std::string printed(const TapeOptions& options) {
  std::ostringstream out;
  EXPECT_EQ(tape_command(options, out), 0);
  return out.str();
}

Tensor sum_of(const std::vector<Tensor>& tensors) {
  std::vector<double> sum(std::size_t(tensors.at(0).count()), 0);
  for (const Tensor& tensor : tensors) {
    const std::vector<double> values = tensor.to_vector();
    for (std::size_t i = 0; i < sum.size(); ++i) sum[i] += values[i];
  }
  return Tensor::from(sum, tensors[0].shape());
}

class EveryExample : public ::testing::TestWithParam<std::string> {
 protected:
  const TapeExample& example() const { return find_tape_example(GetParam()); }
};
INSTANTIATE_TEST_SUITE_P(Tape, EveryExample,
                         ::testing::Values("line", "perceptron", "softmax-attention", "sinkhorn-layer",
                                           "sinkhorn-composed"),
                         [](const auto& info) {
                           std::string name = info.param;
                           std::replace(name.begin(), name.end(), '-', '_');
                           return name;
                         });

TEST_P(EveryExample, IsWrittenDownAsTheTapeHasIt) {
  const TapeWalk walk = walk_tape(example());
  const Tape tape = Tape::record();
  const TapeExample::Built built = example().build(tape);
  const std::vector<NodeInfo> infos = tape.nodes();
  ASSERT_EQ(walk.nodes.size(), infos.size());
  EXPECT_EQ(walk.root, built.loss.node);
  EXPECT_EQ(walk.nodes.back().kept_after_forward, tape.kept_bytes());
  std::size_t kept = 0;
  for (std::size_t i = 0; i < infos.size(); ++i) {
    const TapeWalk::Node& node = walk.nodes[i];
    EXPECT_EQ(node.info.name, infos[i].name);
    EXPECT_EQ(node.info.inputs, infos[i].inputs);
    EXPECT_EQ(node.value.shape(), infos[i].shape);
    std::size_t bytes = 0;
    for (const KeptTensor& tensor : infos[i].kept) bytes += tensor.bytes;
    EXPECT_EQ(bytes, infos[i].kept_bytes);
    EXPECT_EQ(node.kept.size(), infos[i].kept.size());
    kept += bytes;
    EXPECT_EQ(node.kept_after_forward, kept);
    EXPECT_EQ(node.is_leaf(), !node.label.empty()) << "a leaf without a name: " << i;
  }
  EXPECT_TRUE(equal_bits(walk.nodes[std::size_t(walk.root)].value, built.loss.value));
  const Gradients gradients = tape.backward(built.loss);
  for (std::size_t i = 0; i < infos.size(); ++i) {
    if (!walk.nodes[i].is_leaf()) continue;
    const Var leaf({}, tape, int(i));
    // Flows that nobody watches are added where they meet, which may round otherwise.
    EXPECT_LE(relative_error(walk.nodes[i].incoming, gradients.of(leaf)), 1e-6) << walk.title(int(i));
  }
}

TEST_P(EveryExample, MemoryFallsAsBackwardRisesAndFlowsAddUp) {
  const TapeWalk walk = walk_tape(example());
  std::size_t kept = walk.nodes.back().kept_after_forward;
  for (int i = walk.root; i >= 0; --i) {
    const TapeWalk::Node& node = walk.nodes[std::size_t(i)];
    EXPECT_EQ(node.kept_before_backward, kept);
    kept -= node.info.kept_bytes;
    EXPECT_EQ(node.kept_after_backward, kept) << i;
    std::vector<Tensor> flows;
    for (const TapeWalk::Node& other : walk.nodes)
      for (const TapeWalk::Flow& flow : other.flows)
        if (flow.to == i) flows.push_back(flow.tensor);
    if (i == walk.root || flows.empty()) continue;
    EXPECT_LE(relative_error(node.incoming, sum_of(flows)), 1e-6) << walk.title(i);
  }
  EXPECT_EQ(walk.nodes.front().kept_after_backward, 0u);
}

TEST_P(EveryExample, HasJsonThatAgreesWithTheTape) {
  const Tape tape = Tape::record();
  const TapeExample::Built built = example().build(tape);
  const auto json = nlohmann::json::parse(printed({.example = GetParam(), .json = "-"}));
  const std::vector<NodeInfo> infos = tape.nodes();
  ASSERT_EQ(json.at("nodes").size(), infos.size());
  EXPECT_EQ(json.at("forward").back().at("kept_bytes"), tape.kept_bytes());
  EXPECT_EQ(json.at("backward").front().at("kept_bytes_before"), tape.kept_bytes());
  EXPECT_EQ(json.at("backward").back().at("kept_bytes"), 0);
  ASSERT_EQ(json.at("backward").size(), std::size_t(built.loss.node) + 1);
  std::size_t held = tape.kept_bytes();
  for (const auto& step : json.at("backward")) {
    EXPECT_EQ(step.at("kept_bytes_before"), held);
    held -= infos.at(step.at("node").get<std::size_t>()).kept_bytes;
    EXPECT_EQ(step.at("kept_bytes"), held);
  }
  for (std::size_t i = 0; i < infos.size(); ++i) {
    const auto& node = json.at("nodes")[i];
    EXPECT_EQ(node.at("name"), infos[i].name);
    ASSERT_EQ(node.at("inputs").size(), infos[i].inputs.size());
    for (std::size_t k = 0; k < infos[i].inputs.size(); ++k)
      EXPECT_EQ(node.at("inputs")[k].is_null() ? -1 : node.at("inputs")[k].get<int>(), infos[i].inputs[k]);
    std::size_t bytes = 0;
    for (const auto& kept : node.at("kept")) bytes += kept.at("bytes").get<std::size_t>();
    EXPECT_EQ(bytes, infos[i].kept_bytes);
    EXPECT_EQ(node.at("kept_bytes"), infos[i].kept_bytes);
    EXPECT_EQ(node.at("value").at("shape").size(), std::size_t(infos[i].shape.rank()));
  }
  const auto loss = json.at("nodes").at(std::size_t(json.at("loss").get<int>()));
  EXPECT_FLOAT_EQ(loss.at("value").at("values").at(0).get<float>(), float(built.loss.value.item()));
  EXPECT_EQ(loss.at("gradient").at("values").at(0), 1);
}

TEST_P(EveryExample, PrintsPlainLinesThatFit) {
  const std::string text = printed({.example = GetParam(), .all = true});
  EXPECT_FALSE(contains(text, "\x1b"));
  std::istringstream lines(text);
  for (std::string line; std::getline(lines, line);) EXPECT_LE(drawing::width(line), 80) << line;
  const TapeStepper stepper(walk_tape(example()));
  std::size_t at = 0;
  for (int step = 0; step < stepper.steps(); ++step) {
    const std::string picture = stepper.picture({}, step);
    at = text.find(picture, at);
    ASSERT_NE(at, std::string::npos) << picture;
  }
  EXPECT_TRUE(contains(text, "memory falls as backward rises"));
}

std::multiset<std::pair<int, int>> edges_of(const TapeWalk& walk) {
  std::multiset<std::pair<int, int>> edges;
  for (std::size_t i = 0; i < walk.nodes.size(); ++i)
    for (const int input : walk.nodes[i].info.inputs)
      if (input >= 0) edges.emplace(input, int(i));
  return edges;
}

std::multiset<std::pair<int, int>> matches(const std::string& text, const std::string& pattern) {
  std::multiset<std::pair<int, int>> found;
  const std::regex regex(pattern);
  for (std::sregex_iterator it(text.begin(), text.end(), regex), end; it != end; ++it)
    found.emplace(std::stoi((*it)[1]), std::stoi((*it)[2]));
  return found;
}

/// What is wrong with the tags: each opened one is closed, in order.
std::string unbalanced(const std::string& xml) {
  std::vector<std::string> open;
  const std::regex tag(R"re(<(/?)([A-Za-z]+)((?:"[^"]*"|[^<>"])*?)(/?)>)re");
  std::size_t tags = 0;
  for (std::sregex_iterator it(xml.begin(), xml.end(), tag), end; it != end; ++it, ++tags) {
    const std::string name = (*it)[2];
    if ((*it)[1].length() > 0) {
      if (open.empty() || open.back() != name) return "</" + name + "> closes nothing";
      open.pop_back();
    } else if ((*it)[4].length() == 0) {
      open.push_back(name);
    }
  }
  if (std::size_t(std::count(xml.begin(), xml.end(), '<')) != tags) return "a < that begins no tag";
  return open.empty() ? "" : "<" + open.back() + "> is not closed";
}

TEST_P(EveryExample, HasEveryNodeAndEdgeInDotAndSvg) {
  const TapeWalk walk = walk_tape(example());
  const std::string dot = printed({.example = GetParam(), .dot = "-"});
  EXPECT_EQ(dot.rfind("digraph \"" + GetParam() + "\" {", 0), 0u);
  EXPECT_TRUE(dot.ends_with("}\n"));
  EXPECT_EQ(matches(dot, R"(n(\d+) -> n(\d+);)"), edges_of(walk));
  const std::string svg = printed({.example = GetParam(), .svg = "-"});
  EXPECT_EQ(unbalanced(svg), "");
  EXPECT_TRUE(contains(svg, "prefers-color-scheme: dark"));
  for (const char* outside : {"href=", "url(http", "@import", "<script"}) EXPECT_FALSE(contains(svg, outside));
  EXPECT_EQ(matches(svg, R"re(data-from="(\d+)" data-to="(\d+)")re"), edges_of(walk));
  for (std::size_t i = 0; i < walk.nodes.size(); ++i) {
    const std::string name = "#" + std::to_string(i) + " " + walk.title(int(i));
    EXPECT_TRUE(contains(dot, "n" + std::to_string(i) + " [label=\"" + name)) << name;
    EXPECT_TRUE(contains(svg, ">" + name + "</text>")) << name;
  }
}

TEST_P(EveryExample, IsLaidOutDownwardsWithoutOverlap) {
  const TapeWalk walk = walk_tape(example());
  const GraphLayout layout = layout_graph(walk);
  for (std::size_t i = 0; i < layout.centres.size(); ++i) {
    EXPECT_GE(layout.centres[i].x - layout.widths[i] / 2, 0);
    EXPECT_LE(layout.centres[i].x + layout.widths[i] / 2, layout.width);
    for (std::size_t j = 0; j < i; ++j) {
      if (std::abs(layout.centres[i].y - layout.centres[j].y) >= layout.node_height) continue;
      EXPECT_GE(std::abs(layout.centres[i].x - layout.centres[j].x), (layout.widths[i] + layout.widths[j]) / 2)
          << "nodes " << j << " and " << i << " overlap";
    }
  }
  for (const GraphLayout::Edge& edge : layout.edges)
    for (std::size_t i = 1; i < edge.points.size(); ++i) EXPECT_GT(edge.points[i].y, edge.points[i - 1].y);
}

TEST(TapeCommand, TellsTheLineStepByStep) {
  const TapeStepper stepper(walk_tape(find_tape_example("line")));
  ASSERT_EQ(stepper.steps(), 10);
  EXPECT_TRUE(contains(stepper.picture({}, 0), "forward 1 of 5   #0 a (leaf)\n"));
  const std::string product = stepper.picture({}, 3);
  EXPECT_TRUE(contains(product, "of       #0 a (), #1 b ()\n")) << product;
  EXPECT_TRUE(contains(product, "keeps    the value of #0 a: () f32, 4 B\n         the value of #1 b: () f32, 4 B\n"));
  EXPECT_TRUE(contains(product, " 8 B\n")) << product;
  const std::string back = stepper.picture({}, 6);
  EXPECT_TRUE(contains(back, "backward 2 of 5   #3 mul")) << back;
  EXPECT_TRUE(contains(back, "flows    to #0 a (): -3\n")) << back;
  EXPECT_TRUE(contains(back, "flows    to #1 b (): 2\n")) << back;
  EXPECT_TRUE(contains(back, "frees    8 B")) << back;
  EXPECT_TRUE(contains(stepper.picture({}, 9), "d loss / d a"));
}

TEST(TapeCommand, SaysWhereGradientsMeetAndWhatGetsNone) {
  const TapeStepper attention(walk_tape(find_tape_example("softmax-attention")));
  EXPECT_TRUE(contains(attention.picture({}, attention.steps() - 1), "sum of 3 flows"));
  EXPECT_TRUE(contains(printed({.example = "perceptron", .all = true}), "nothing flows to the constant input"));
}

Key key(char32_t character) { return {Key::Kind::character, character}; }

TEST(TapeCommand, KeysMoveThroughTheSteps) {
  TapeStepper stepper(walk_tape(find_tape_example("line")));
  const auto press = [&](const Key& pressed) {
    EXPECT_TRUE(stepper.press(pressed));
    return stepper.step();
  };
  EXPECT_EQ(press({Key::Kind::enter}), 1);
  EXPECT_EQ(press(key(U' ')), 2);
  EXPECT_EQ(press(key(U'b')), 1);
  EXPECT_EQ(press(key(U'b')), 0);
  EXPECT_EQ(press(key(U'b')), 0);
  EXPECT_EQ(press(key(U'f')), 4);
  EXPECT_EQ(press(key(U'n')), 5);
  EXPECT_TRUE(stepper.is_backward(5));
  // In backward a number goes to that node's step there.
  EXPECT_EQ(press(key(U'1')), 5);
  EXPECT_TRUE(contains(stepper.screen({}, 24), "to node 1_"));
  EXPECT_EQ(press({Key::Kind::enter}), 8);
  EXPECT_EQ(stepper.node_at(8), 1);
  EXPECT_EQ(press({Key::Kind::home}), 0);
  press(key(U'7'));
  EXPECT_EQ(press({Key::Kind::enter}), 0);
  EXPECT_TRUE(contains(stepper.screen({}, 24), "There is no node 7"));
  EXPECT_EQ(press({Key::Kind::end}), 9);
  EXPECT_EQ(press({Key::Kind::right}), 9);
  EXPECT_TRUE(contains(stepper.screen({}, 24), "last step"));
  EXPECT_EQ(press(key(U'x')), 9);
  press(key(U'9')), press(key(U'9')), press(key(U'9')), press(key(U'9')), press(key(U'9')), press(key(U'9'));
  EXPECT_EQ(press(key(U'9')), 9);
  EXPECT_TRUE(stepper.press({Key::Kind::escape}));  // forgets the number
  EXPECT_FALSE(stepper.press({Key::Kind::escape}));
  EXPECT_EQ(stepper.exit_code(), 0);
  EXPECT_FALSE(stepper.press(key(U'q')));
  EXPECT_FALSE(stepper.press({Key::Kind::interrupt}));
  EXPECT_EQ(stepper.exit_code(), 130);
}

TEST(TapeCommand, EveryScreenFitsTheWindow) {
  for (const TapeExample& example : tape_examples()) {
    TapeStepper stepper(walk_tape(example));
    for (int step = 0; step < stepper.steps(); ++step, stepper.press(key(U' '))) {
      ASSERT_EQ(stepper.step(), step);
      std::istringstream lines(stepper.screen({}, 24));
      int count = 0;
      for (std::string line; std::getline(lines, line); ++count)
        EXPECT_LE(drawing::width(line), 80) << example.name << ": " << line;
      EXPECT_LE(count, 24) << example.name << ":\n" << stepper.screen({}, 24);
    }
  }
}

TEST(TapeCommand, StepsOnATerminal) {
  const testing::TemporaryFolder folder;
  testing::Terminal terminal(folder.path, {"tape", "--example", "line"});
  ASSERT_TRUE(terminal.wait_for("forward 1 of 5")) << terminal.screen();
  terminal.type("\r");
  ASSERT_TRUE(terminal.wait_for("forward 2 of 5")) << terminal.screen();
  terminal.type(" b");
  ASSERT_TRUE(terminal.wait_for("forward 3 of 5")) << terminal.screen();
  ASSERT_TRUE(terminal.wait_for("forward 2 of 5")) << terminal.screen();
  terminal.type("f");
  ASSERT_TRUE(terminal.wait_for("forward 5 of 5")) << terminal.screen();
  terminal.type("\r");
  ASSERT_TRUE(terminal.wait_for("backward 1 of 5")) << terminal.screen();
  terminal.type("0\r");
  ASSERT_TRUE(terminal.wait_for("backward 5 of 5")) << terminal.screen();
  terminal.type("q");
  EXPECT_EQ(terminal.wait(), 0);
  EXPECT_TRUE(contains(terminal.screen(), "\x1b[?1049l")) << "the screen was not given back";
}

TEST(TapeCommand, EndsWith130AfterCtrlC) {
  const testing::TemporaryFolder folder;
  testing::Terminal terminal(folder.path, {"tape"});
  ASSERT_TRUE(terminal.wait_for("forward 1 of 5")) << terminal.screen();
  terminal.type("\x03");
  EXPECT_EQ(terminal.wait(), 130);
}

TEST(TapeCommand, RefusesInOneLineWithTheExitCode) {
  const testing::TemporaryFolder folder;
  const auto refused = [&](std::vector<std::string> arguments, int code, const std::string& part) {
    arguments.insert(arguments.begin(), "tape");
    const testing::Outcome outcome = testing::run_program(folder.path, arguments);
    EXPECT_EQ(outcome.code, code) << outcome.err;
    EXPECT_EQ(outcome.out, "");
    EXPECT_EQ(std::count(outcome.err.begin(), outcome.err.end(), '\n'), 1) << outcome.err;
    EXPECT_TRUE(contains(outcome.err, part)) << outcome.err;
  };
  refused({"--example", "lne"}, 2, "tape: no example lne; did you mean line?  (there are line, perceptron");
  refused({"--svg", "missing/tape.svg"}, 3, "missing");
  refused({"--json", "-", "--dot", "-"}, 2, "only one of --dot, --svg and --json can be -");
}

TEST(TapeCommand, WritesFilesAndSaysSo) {
  const testing::TemporaryFolder folder;
  const testing::Outcome outcome =
      testing::run_program(folder.path, {"tape", "--dot", "a.dot", "--svg", "a.svg", "--json", "a.json"});
  EXPECT_EQ(outcome.code, 0) << outcome.err;
  EXPECT_EQ(std::count(outcome.out.begin(), outcome.out.end(), '\n'), 3) << outcome.out;
  const TapeWalk walk = walk_tape(find_tape_example("line"));
  EXPECT_EQ(testing::content_of(folder.path / "a.dot"), to_dot(walk));
  EXPECT_EQ(testing::content_of(folder.path / "a.svg"), to_svg(walk));
  EXPECT_EQ(testing::content_of(folder.path / "a.json"), to_json(walk));
}

}  // namespace
}  // namespace sinkhorn
