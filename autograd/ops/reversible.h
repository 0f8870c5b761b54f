// A chain of reversible residual blocks as one node of the tape (Gomez et al. 2017): only the last pair is kept, and
// backward rebuilds the activations of one branch at a time.
#pragma once
#include <functional>

#include "autograd/graph.h"
#include "autograd/residual.h"
#include "autograd/tape.h"

namespace sinkhorn {

/// The discrete choices of one branch. Recomputation starts from an input that is exact only to rounding, so it must
/// not choose again: the first run records, every later run replays.
class Choices {
 public:
  /// The next recorded choice when replaying, else empty.
  Tensor replayed() { return replaying_ ? made_.at(next_++) : Tensor(); }
  void record(const Tensor& choice) {
    if (!replaying_) made_.push_back(choice);
  }
  void replay() {
    replaying_ = true;
    next_ = 0;
  }
  const Tensors& made() const { return made_; }

 private:
  Tensors made_;
  std::size_t next_ = 0;
  bool replaying_ = false;
};

/// One residual function: computes on `tape` (none: no gradient) a tensor of x's shape from x and the context, and adds
/// it to the residual. It must give equal bits for equal inputs and choices, and reach every parameter through
/// tape.leaf.
struct Branch {
  std::function<Var(const Tape& tape, const Var& x, const Var& context, Choices& choices, const Residual& residual)>
      run;
  std::vector<const Parameter*> parameters;
  /// Backward runs a branch that works on each token (row of x's last axis) for itself, without choices, context or
  /// noise, on so many tokens at a time: only their activations are there at once. 0: on all of them.
  std::int64_t tokens_at_once = 0;
};

/// y1 = x1 + f(x2), y2 = x2 + g(y1); or the pair as it came, where `runs` is off. Either function may be a sum of
/// branches, which run one after the other: only one of them has its activations at a time.
struct ReversibleBlock {
  std::vector<Branch> f, g;
  Switch runs = {};

  std::size_t branches() const { return f.size() + g.size(); }
};

namespace ops {

/// Inputs x, context (may be empty), then `parameters` in order. Output y1 + y2 of the last block, with (x, x) given to
/// the first one (behaviour 2.14).
struct ReversibleChain {
  static constexpr std::string_view name = "reversible_chain";
  std::vector<ReversibleBlock> blocks;
  std::vector<const Parameter*> parameters;
  Output forward(Saved& save, Inputs in) const;
  Tensors backward(const Saved& saved, Tensor dy) const;
  static std::vector<Case<ReversibleChain>> cases();

 private:
  std::size_t branches() const;
  /// Whether a graph may leave blocks out. All that a block changes keeps its place then, so that it lies there whether
  /// the block runs or not.
  bool keeps_places() const;
};

}  // namespace ops

/// Runs x through the blocks. With a tape, gradients reach x, the context (summed over the blocks) and every parameter.
Var reversible_chain(const Tape& tape, const Var& x, const Var& context, std::vector<ReversibleBlock> blocks);

}  // namespace sinkhorn
