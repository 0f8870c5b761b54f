#include "tools/tape_graph.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "tools/xml.h"

namespace sinkhorn {
namespace {

constexpr double kCharacter = 7.3, kHeight = 50, kGap = 22, kLayer = 92, kMargin = 24;
constexpr int kSweeps = 12, kSettling = 200;

/// What stands in a node's box.
struct Lines {
  std::string name, detail;
};
Lines lines_of(const TapeWalk& walk, int node) {
  const TapeWalk::Node& shown = walk.nodes[std::size_t(node)];
  Lines lines{fmt::format("#{} {}", node, walk.title(node)), text_of(shown.info.shape)};
  if (shown.info.kept_bytes > 0) lines.detail += fmt::format("  keeps {} B", shown.info.kept_bytes);
  return lines;
}

/// The nodes of the tape and, on edges across several layers, a bend in each layer between.
class Layers {
 public:
  explicit Layers(const TapeWalk& walk) : walk_(walk), depth_(walk.nodes.size(), 0) {
    place_nodes();
    for (std::size_t i = 0; i < walk.nodes.size(); ++i) {
      const Lines lines = lines_of(walk, int(i));
      const auto longest = double(std::max(lines.name.size(), lines.detail.size()));
      add(depth_[i], longest * kCharacter + 20);
    }
    for (std::size_t i = 0; i < walk.nodes.size(); ++i) {
      const std::vector<int>& inputs = walk.nodes[i].info.inputs;
      for (std::size_t k = 0; k < inputs.size(); ++k)
        if (inputs[k] >= 0) add_edge(inputs[k], int(i), int(k));
    }
  }

  GraphLayout run() {
    for (int sweep = 0; sweep < kSweeps; ++sweep) order(sweep % 2 == 0);
    position();
    return result();
  }

 private:
  struct Item {
    int layer;
    double width, x = 0;
    std::vector<int> above, below;
  };
  struct Chain {
    int from, to, input;
    std::vector<int> items;
  };

  // Ops go right below their lowest input; leaves, which have none, right above their highest reader.
  void place_nodes() {
    for (std::size_t i = 0; i < depth_.size(); ++i)
      for (const int input : walk_.nodes[i].info.inputs)
        if (input >= 0) depth_[i] = std::max(depth_[i], depth_[std::size_t(input)] + 1);
    std::vector<int> reader(depth_.size(), std::numeric_limits<int>::max());
    for (std::size_t i = 0; i < depth_.size(); ++i)
      for (const int input : walk_.nodes[i].info.inputs)
        if (input >= 0) reader[std::size_t(input)] = std::min(reader[std::size_t(input)], depth_[i]);
    for (std::size_t i = 0; i < depth_.size(); ++i)
      if (walk_.nodes[i].is_leaf() && reader[i] != std::numeric_limits<int>::max()) depth_[i] = reader[i] - 1;
  }
  int add(int layer, double width) {
    if (int(layers_.size()) <= layer) layers_.resize(std::size_t(layer) + 1);
    items_.push_back({layer, width, 0, {}, {}});
    layers_[std::size_t(layer)].push_back(int(items_.size()) - 1);
    return int(items_.size()) - 1;
  }
  void add_edge(int from, int to, int input) {
    Chain chain{from, to, input, {from}};
    for (int layer = depth_[std::size_t(from)] + 1; layer < depth_[std::size_t(to)]; ++layer)
      chain.items.push_back(add(layer, 8));
    chain.items.push_back(to);
    for (std::size_t i = 1; i < chain.items.size(); ++i) {
      items_[std::size_t(chain.items[i])].above.push_back(chain.items[i - 1]);
      items_[std::size_t(chain.items[i - 1])].below.push_back(chain.items[i]);
    }
    chains_.push_back(std::move(chain));
  }

  // Sorts each layer by the mean place of the neighbours in the layer before.
  void order(bool downwards) {
    std::vector<double> place(items_.size(), 0);
    const auto number = [&](const std::vector<int>& layer) {
      for (std::size_t i = 0; i < layer.size(); ++i) place[std::size_t(layer[i])] = double(i) / double(layer.size());
    };
    const auto count = int(layers_.size());
    for (const std::vector<int>& layer : layers_) number(layer);
    for (int step = 0; step < count; ++step) {
      std::vector<int>& layer = layers_[std::size_t(downwards ? step : count - 1 - step)];
      std::vector<double> wish(items_.size(), 0);
      for (const int item : layer) {
        const std::vector<int>& near = downwards ? items_[std::size_t(item)].above : items_[std::size_t(item)].below;
        wish[std::size_t(item)] = mean_of(near, place, place[std::size_t(item)]);
      }
      std::stable_sort(layer.begin(), layer.end(),
                       [&](int a, int b) { return wish[std::size_t(a)] < wish[std::size_t(b)]; });
      number(layer);
    }
  }
  static double mean_of(const std::vector<int>& items, const std::vector<double>& of, double otherwise) {
    if (items.empty()) return otherwise;
    double sum = 0;
    for (const int item : items) sum += of[std::size_t(item)];
    return sum / double(items.size());
  }

  // Each item is drawn to the mean of its neighbours; those of a layer keep their order and their distance.
  void position() {
    for (const std::vector<int>& layer : layers_) {
      double x = 0;
      for (const int item : layer) {
        Item& placed = items_[std::size_t(item)];
        placed.x = x + placed.width / 2;
        x += placed.width + kGap;
      }
      for (const int item : layer) items_[std::size_t(item)].x -= x / 2;  // centred
    }
    for (int sweep = 0; sweep < kSettling; ++sweep) {
      for (const std::vector<int>& layer : layers_) settle(layer);
      for (std::size_t i = layers_.size(); i-- > 0;) settle(layers_[i]);
    }
  }
  // The places nearest to the wishes (in weighted squares) that keep order and distance: isotonic regression of the
  // wishes less the least distances, where neighbours that would overlap share a mean.
  void settle(const std::vector<int>& layer) {
    struct Block {
      double wish, weight;
      std::size_t items;
    };
    std::vector<Block> blocks;
    double offset = 0;
    for (std::size_t i = 0; i < layer.size(); ++i) {
      if (i > 0) offset += distance(layer, i);
      const auto [wish, weight] = wish_of(layer[i]);
      Block block{wish - offset, weight, 1};
      while (!blocks.empty() && blocks.back().wish >= block.wish) {
        const Block& before = blocks.back();
        const double sum = before.weight + block.weight;
        block = {(before.wish * before.weight + block.wish * block.weight) / sum, sum, before.items + block.items};
        blocks.pop_back();
      }
      blocks.push_back(block);
    }
    std::size_t i = 0;
    offset = 0;
    for (const Block& block : blocks) {
      for (std::size_t k = 0; k < block.items; ++k, ++i) {
        if (i > 0) offset += distance(layer, i);
        items_[std::size_t(layer[i])].x = block.wish + offset;
      }
    }
  }
  // The mean place of the neighbours, and how much it matters.
  std::pair<double, double> wish_of(int item) const {
    const Item& at = items_[std::size_t(item)];
    double sum = 0, weights = 0;
    for (const std::vector<int>* side : {&at.above, &at.below}) {
      for (const int other : *side) {
        const double weight = pull(item, other);
        sum += weight * items_[std::size_t(other)].x;
        weights += weight;
      }
    }
    if (weights == 0) return {at.x, 1};
    return {sum / weights, weights};
  }
  // Long edges are kept straight (Gansner et al. 1993): they pull harder between two bends.
  double pull(int a, int b) const {
    const int bends = int(is_bend(a)) + int(is_bend(b));
    return bends == 2 ? 8 : bends == 1 ? 2 : 1;
  }
  bool is_bend(int item) const { return std::size_t(item) >= walk_.nodes.size(); }
  double distance(const std::vector<int>& layer, std::size_t i) const {
    return (items_[std::size_t(layer[i - 1])].width + items_[std::size_t(layer[i])].width) / 2 + kGap;
  }

  GraphLayout result() const {
    double least = std::numeric_limits<double>::infinity(), most = -least;
    for (const Item& item : items_) {
      least = std::min(least, item.x - item.width / 2);
      most = std::max(most, item.x + item.width / 2);
    }
    GraphLayout layout;
    layout.node_height = kHeight;
    layout.width = most - least + 2 * kMargin;
    layout.height = double(layers_.size() - 1) * kLayer + kHeight + 2 * kMargin;
    const auto centre = [&](int item) {
      const Item& at = items_[std::size_t(item)];
      return Point{at.x - least + kMargin, kMargin + kHeight / 2 + at.layer * kLayer};
    };
    for (std::size_t i = 0; i < walk_.nodes.size(); ++i) {
      layout.centres.push_back(centre(int(i)));
      layout.widths.push_back(items_[i].width);
    }
    for (const Chain& chain : chains_) {
      GraphLayout::Edge edge{chain.from, chain.to, chain.input, {}};
      for (const int item : chain.items) edge.points.push_back(centre(item));
      edge.points.front().y += kHeight / 2;
      edge.points.back().y -= kHeight / 2;
      edge.points.back().x += entry(chain);
      layout.edges.push_back(std::move(edge));
    }
    return layout;
  }
  // The inputs of an op arrive side by side, in their order.
  double entry(const Chain& chain) const {
    const std::vector<int>& inputs = walk_.nodes[std::size_t(chain.to)].info.inputs;
    const auto tracked = double(std::count_if(inputs.begin(), inputs.end(), [](int input) { return input >= 0; }));
    const auto before =
        double(std::count_if(inputs.begin(), inputs.begin() + chain.input, [](int input) { return input >= 0; }));
    return (before - (tracked - 1) / 2) * 12;
  }

  const TapeWalk& walk_;
  std::vector<int> depth_;
  std::vector<Item> items_;  // the nodes, then the bends
  std::vector<std::vector<int>> layers_;
  std::vector<Chain> chains_;
};

std::string escaped_for_dot(const std::string& text) {
  std::string result;
  for (const char c : text) {
    if (c == '"' || c == '\\') result += '\\';
    result += c;
  }
  return result;
}

// Vertical at every point, so that bends flow into each other.
std::string path_of(const std::vector<Point>& points) {
  std::string path = fmt::format("M{:.1f} {:.1f}", points.front().x, points.front().y);
  for (std::size_t i = 1; i < points.size(); ++i) {
    const Point &a = points[i - 1], &b = points[i];
    const double middle = (a.y + b.y) / 2;
    path += fmt::format(" C{:.1f} {:.1f} {:.1f} {:.1f} {:.1f} {:.1f}", a.x, middle, b.x, middle, b.x, b.y);
  }
  return path;
}

constexpr std::string_view kStyle = R"(<style>
  svg { --page: #ffffff; --ink: #1b1f24; --quiet: #5b6470; --op: #e9f1fb; --op-rim: #4078c0; --leaf: #eef7e8;
        --leaf-rim: #4b8b2b; --loss: #fdf0dc; --loss-rim: #b8741a; background: var(--page); }
  @media (prefers-color-scheme: dark) {
    svg { --page: #14171b; --ink: #e6e9ed; --quiet: #9aa4b0; --op: #1d2b3f; --op-rim: #6ea3e6; --leaf: #1f2f1a;
          --leaf-rim: #86c06a; --loss: #38290f; --loss-rim: #dfa047; }
  }
  text { font: 13px ui-monospace, Menlo, Consolas, "DejaVu Sans Mono", monospace; fill: var(--ink);
         text-anchor: middle; }
  .detail, .caption { fill: var(--quiet); font-size: 11px; }
  .caption { text-anchor: start; }
  rect { stroke-width: 1.3; fill: var(--op); stroke: var(--op-rim); }
  .leaf rect { fill: var(--leaf); stroke: var(--leaf-rim); }
  .loss rect { fill: var(--loss); stroke: var(--loss-rim); }
  .edge { fill: none; stroke: var(--quiet); stroke-width: 1.2; marker-end: url(#tip); }
  #tip path { fill: var(--quiet); }
</style>
)";

}  // namespace

GraphLayout layout_graph(const TapeWalk& walk) { return Layers(walk).run(); }

std::string to_dot(const TapeWalk& walk) {
  std::string dot =
      fmt::format("digraph \"{}\" {{\n  node [fontname=\"monospace\", shape=box];\n", escaped_for_dot(walk.example));
  for (std::size_t i = 0; i < walk.nodes.size(); ++i) {
    const Lines lines = lines_of(walk, int(i));
    dot += fmt::format("  n{} [label=\"{}\\n{}\"{}];\n", i, escaped_for_dot(lines.name), escaped_for_dot(lines.detail),
                       walk.nodes[i].is_leaf() ? ", style=rounded" : "");
  }
  for (std::size_t i = 0; i < walk.nodes.size(); ++i)
    for (const int input : walk.nodes[i].info.inputs)
      if (input >= 0) dot += fmt::format("  n{} -> n{};\n", input, i);
  return dot + "}\n";
}

std::string to_svg(const TapeWalk& walk) {
  const GraphLayout layout = layout_graph(walk);
  const std::string caption = fmt::format("{}: {}", walk.example, walk.purpose);
  const double width = std::max(layout.width, double(caption.size()) * 6.7 + 2 * kMargin), height = layout.height + 20;
  const double shift = (width - layout.width) / 2;
  std::string svg = fmt::format(
      "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{0:.0f}\" height=\"{1:.0f}\" viewBox=\"0 0 {0:.0f} {1:.0f}\" "
      "role=\"img\">\n<title>The tape of {2}</title>\n{3}"
      "<defs><marker id=\"tip\" viewBox=\"0 0 8 8\" refX=\"7\" refY=\"4\" markerWidth=\"7\" markerHeight=\"7\" "
      "orient=\"auto\"><path d=\"M0 0 L8 4 L0 8 z\"/></marker></defs>\n<g transform=\"translate({4:.1f} 0)\">\n",
      width, height, escaped_for_xml(walk.example), kStyle, shift);
  for (const GraphLayout::Edge& edge : layout.edges)
    svg += fmt::format("<path class=\"edge\" data-from=\"{}\" data-to=\"{}\" d=\"{}\"/>\n", edge.from, edge.to,
                       path_of(edge.points));
  for (std::size_t i = 0; i < walk.nodes.size(); ++i) {
    const Lines lines = lines_of(walk, int(i));
    const Point at = layout.centres[i];
    const bool is_leaf = walk.nodes[i].is_leaf();
    svg += fmt::format(
        "<g class=\"node {}\" id=\"n{}\"><rect x=\"{:.1f}\" y=\"{:.1f}\" width=\"{:.1f}\" height=\"{:.0f}\" "
        "rx=\"{}\"/><text x=\"{:.1f}\" y=\"{:.1f}\">{}</text><text class=\"detail\" x=\"{:.1f}\" "
        "y=\"{:.1f}\">{}</text></g>\n",
        is_leaf               ? "leaf"
        : int(i) == walk.root ? "loss"
                              : "op",
        i, at.x - layout.widths[i] / 2, at.y - layout.node_height / 2, layout.widths[i], layout.node_height,
        is_leaf ? 22 : 6, at.x, at.y - 4, escaped_for_xml(lines.name), at.x, at.y + 14, escaped_for_xml(lines.detail));
  }
  return svg + fmt::format("</g>\n<text class=\"caption\" x=\"{:.0f}\" y=\"{:.0f}\">{}</text>\n</svg>\n", kMargin,
                           height - 14, escaped_for_xml(caption));
}

}  // namespace sinkhorn
