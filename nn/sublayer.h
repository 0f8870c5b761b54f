// What stands around every attention and feed-forward: a norm before it (PreNorm), or a learned scalar behind it
// (ReZero), and the sum with the residual stream, which has the stream's type, whatever the sublayer computes in.
#pragma once
#include <memory>
#include <optional>

#include "nn/layers.h"

namespace sinkhorn {

/// f(LayerNorm(x)), or g * f(x) with g = 0 at first (behaviour 2.11). With tied weights several sublayers share one
/// `fn`; the first of them owns it, which is where its parameters are named, and each has its own norm or scalar.
template <class Module>
struct Sublayer {
  Sublayer(std::shared_ptr<Module> fn, bool owns, std::int64_t dim, bool rezero, Initializer& init)
      : fn(std::move(fn)), owns(owns) {
    if (rezero)
      g = init.constant({1}, 0);
    else
      norm.emplace(dim, init);
  }

  /// Added to the residual, if there is one: by the sublayer's last product, unless a scalar stands between or somebody
  /// looks at what comes out.
  template <class... More>
  Var operator()(const Scope& scope, const Residual& residual, const Var& x, const More&... more) const {
    const bool apart = !residual || !norm || scope.observer;
    const Var in = norm ? (*norm)(scope, x) : scope.rounded(x);
    if (!apart) return (*fn)(scope, in, more..., residual);
    Var y = cast((*fn)(scope, in, more..., Residual{}), x.value.dtype());
    if (!norm) y = mul(y, scope.leaf(g));
    scope.observe("sublayer", y.value);
    return add_to(residual, y);
  }
  template <class See>
  void visit(See&& see) {
    if (owns) see("fn", *fn);
    if (norm) see("norm", *norm);
    see("g", g);
  }
  /// Every parameter the sublayer reaches, shared ones included.
  std::vector<const Parameter*> reached() {
    std::vector<const Parameter*> all = parameters_of(*fn);
    if (norm) all.insert(all.end(), {&norm->weight, &norm->bias});
    if (g.value) all.push_back(&g);
    return all;
  }

  std::shared_ptr<Module> fn;
  bool owns;
  std::optional<LayerNorm> norm;
  Parameter g;
};

}  // namespace sinkhorn
