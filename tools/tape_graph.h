// The graph on a tape as a picture: Graphviz's DOT, or an SVG with a layout of its own.
#pragma once
#include <string>
#include <vector>

#include "tools/tape_walk.h"

namespace sinkhorn {

struct Point {
  double x = 0, y = 0;
};

/// Where everything stands, in pixels from the top left. Nodes are in layers from top to bottom: an op is below all of
/// its inputs, a leaf right above the first op that takes it.
struct GraphLayout {
  struct Edge {
    int from, to;
    int input;                  // of `to`
    std::vector<Point> points;  // from the lower side of `from` to the upper side of `to`
  };
  std::vector<Point> centres;  // of the nodes
  std::vector<double> widths;  // of the nodes
  std::vector<Edge> edges;
  double node_height = 0, width = 0, height = 0;
};

/// Layers, crossings lessened by the barycentre method (Sugiyama et al. 1981), then positions near the neighbours'.
GraphLayout layout_graph(const TapeWalk& walk);

std::string to_dot(const TapeWalk& walk);
/// One file that needs nothing else, for a light and for a dark page.
std::string to_svg(const TapeWalk& walk);

}  // namespace sinkhorn
