#include "autograd/ops/reversible.h"

#include <algorithm>
#include <map>
#include <memory>

#include "autograd/ops.h"

namespace sinkhorn {
namespace {

Tensor sum(const Tensor& a, const Tensor& b) { return add(a, b).value; }
// x = value, in x's own place if it must keep that.
void keep(Tensor& x, const Tensor& value, bool in_place) {
  if (!in_place)
    x = value;
  else if (x.raw() != value.raw())
    x.assign(value);
}
void add_flow(Tensor& total, const Tensor& flow, bool in_place) {
  if (flow) keep(total, total ? sum(total, flow) : flow, in_place);
}

// The choices of every branch, those of f, then those of g, block by block. They are recorded in forward and kept as
// tensors with the node.
std::vector<Choices> split_choices(const Saved& saved, std::size_t first, std::size_t branches) {
  const std::int32_t* counts = saved.tensors[first].data<std::int32_t>();
  std::vector<Choices> choices(branches);
  std::size_t next = first + 1;
  for (std::size_t i = 0; i < branches; ++i) {
    for (std::int32_t k = 0; k < counts[i]; ++k) choices[i].record(saved.tensors[next++]);
    choices[i].replay();
  }
  return choices;
}

}  // namespace

namespace ops {

std::size_t ReversibleChain::branches() const {
  std::size_t count = 0;
  for (const ReversibleBlock& block : blocks) count += block.branches();
  return count;
}

bool ReversibleChain::keeps_places() const {
  return std::any_of(blocks.begin(), blocks.end(), [](const ReversibleBlock& block) { return bool(block.runs.word); });
}

Output ReversibleChain::forward(Saved& save, Inputs in) const {
  const Var context = in[1];
  const bool in_place = keeps_places();
  Tensor x1 = in_place ? in[0].clone() : in[0], x2 = in_place ? in[0].clone() : in[0];
  bool is_own[] = {in_place, in_place};  // whether x1, x2 may be written to
  std::vector<Choices> chosen(branches());
  auto step = [&](Tensor& into, bool& may_write, const Tensor& from, const Branch& branch, Choices& choices) {
    const Var y = branch.run(Tape(), from, context, choices, {.onto = into, .in_place = may_write});
    if (y.shape() != into.shape())
      fail("reversible_chain: a branch turned ", from.shape(), " into ", y.shape(),
           "; its output must have the shape of x");
    keep(into, y.value, in_place);
    may_write = true;
  };
  Choices* choices = chosen.data();  // of the block
  for (const ReversibleBlock& block : blocks) {
    when(block.runs, [&, next = choices]() mutable {
      for (const Branch& branch : block.f) step(x1, is_own[0], x2, branch, *next++);
      for (const Branch& branch : block.g) step(x2, is_own[1], x1, branch, *next++);
    });
    choices += block.branches();
  }
  Tensor counts(Shape{std::int64_t(chosen.size())}, DType::i32);
  Tensors made;
  for (std::size_t i = 0; i < chosen.size(); ++i) {
    counts.data<std::int32_t>()[i] = std::int32_t(chosen[i].made().size());
    made.insert(made.end(), chosen[i].made().begin(), chosen[i].made().end());
  }
  save.tensors = {x1, x2, in[1], counts};
  save.tensors.insert(save.tensors.end(), made.begin(), made.end());
  return sum(x1, x2);
}

Tensors ReversibleChain::backward(const Saved& saved, Tensor dy) const {
  // Rebuilt in place: a tape is walked once, so nobody asks for the last pair again.
  Tensor y1 = saved.tensors[0], y2 = saved.tensors[1], d1 = dy, d2 = std::move(dy);
  const Tensor& context = saved.tensors[2];
  std::vector<Choices> choices = split_choices(saved, 3, branches());
  std::map<const Parameter*, std::size_t> input_of;
  for (std::size_t k = 0; k < parameters.size(); ++k) input_of[parameters[k]] = k + 2;
  Tensors flows(saved.wants.size());
  const bool in_place = keeps_places();
  // Where the outer tape gathers gradients in the parameters' own buffers, the branches do it, too.
  bool into_parameters = false;
  for (std::size_t k = 2; k < saved.into.size(); ++k) {
    const Tensor& own = parameters[k - 2]->gradient;
    into_parameters |= own && saved.into[k] && saved.into[k].raw() == own.raw();
  }
  if (in_place) {
    if (context && saved.wants[1]) flows[1] = Tensor::zeros(context.shape(), context.dtype(), context.device());
    for (std::size_t k = 2; k < flows.size(); ++k)
      if (const Parameter& p = *parameters[k - 2]; saved.wants[k] && !(into_parameters && p.gradient))
        flows[k] = Tensor::zeros(p.value.shape(), p.value.dtype(), p.value.device());
    d2 = {};
    if (!d1.is_sole_owner()) d1 = d1.clone();
    d2 = d1.clone();
  }

  // y = x + branch(from): rebuilds x in place of y, and adds what flows through the branch to the gradient of `from`,
  // where it lies if it `adds_in_place`.
  const auto undo_tokens = [&](Tensor& y, const Tensor& from, const Tensor& d_y, Tensor& d_from, bool adds_in_place,
                               const Branch& branch, Choices& chosen) {
    const Tape local = Tape::record(into_parameters);
    const Var x = local.leaf(from), seen = context && saved.wants[1] ? local.leaf(context) : Var(context);
    const Var out = branch.run(local, x, seen, chosen, {.onto = y, .undo = true, .in_place = true});
    keep(y, out.value, in_place);
    if (out.node < 0) return;
    const Gradients gradients = local.backward(out, d_y, x, std::move(d_from), adds_in_place);
    d_from = gradients.of(x);
    add_flow(flows[1], gradients.of(seen), in_place);
    for (const Parameter* parameter : branch.parameters)
      if (const std::size_t k = input_of.at(parameter); saved.wants[k])
        add_flow(flows[k], gradients.of(*parameter), in_place);
  };
  const auto undo = [&](Tensor& y, const Tensor& from, const Tensor& d_y, Tensor& d_from, const Branch& branch,
                        Choices& chosen) {
    const Shape shape = y.shape();
    const std::int64_t tokens = shape.product(0, std::max(shape.rank() - 1, 0)), step = branch.tokens_at_once;
    if (step < 1 || step >= tokens) return undo_tokens(y, from, d_y, d_from, in_place, branch, chosen);
    if (!d_from.is_sole_owner()) d_from = d_from.clone();  // the other half of the pair began as the same tensor
    for (std::int64_t begin = 0; begin < tokens; begin += step) {
      const auto part = [&](const Tensor& x) {
        return x.reshape({tokens, shape[-1]}).slice(begin, std::min(tokens, begin + step));
      };
      Tensor y_part = part(y), d_part = part(d_from);
      undo_tokens(y_part, part(from), part(d_y), d_part, true, branch, chosen);
      if (y_part.raw() != part(y).raw()) part(y).assign(y_part);  // a branch need not write in place
    }
  };
  Choices* end = choices.data() + choices.size();  // of the block's
  for (std::size_t i = blocks.size(); i-- > 0;) {
    const ReversibleBlock& block = blocks[i];
    when(block.runs, [&, last = end]() mutable {
      for (std::size_t k = block.g.size(); k-- > 0;) undo(y2, y1, d2, d1, block.g[k], *--last);
      for (std::size_t k = block.f.size(); k-- > 0;) undo(y1, y2, d1, d2, block.f[k], *--last);
    });
    end -= block.branches();
  }
  if (saved.wants[0]) flows[0] = sum(d1, d2);
  return flows;
}

std::vector<Case<ReversibleChain>> ReversibleChain::cases() {
  // f(x) = tanh(x) * p + context and g(x) = sigmoid(x) * p, `parts` times over each, p shared by every second block.
  // The parameters follow x to its device.
  struct Toy {
    Tensor drawn;
    Parameter parameter;
  };
  auto chain = [](std::string label, std::size_t depth, bool with_context, std::int64_t tokens_at_once = 0,
                  std::size_t parts = 1) {
    auto owned = std::make_shared<std::vector<Toy>>(2);
    ReversibleChain op;
    for (std::size_t i = 0; i < depth; ++i) {
      Toy* const toy = &(*owned)[i % 2];
      const Parameter* const p = &toy->parameter;
      auto at = [owned, toy, p](const Tape& tape, const Var& y) {
        toy->parameter.value = toy->drawn.to(y.value.device());
        return mul(y, tape ? tape.leaf(*p) : Var(p->value));
      };
      const Branch f{[at](const Tape& tape, const Var& x, const Var& context, Choices&, const Residual& residual) {
                       const Var y = at(tape, tanh(x));
                       return add_to(residual, context.value ? add(y, context) : y);
                     },
                     {p}};
      const Branch g{[at](const Tape& tape, const Var& x, const Var&, Choices&, const Residual& residual) {
                       return add_to(residual, at(tape, sigmoid(x)));
                     },
                     {p},
                     tokens_at_once};
      op.blocks.push_back({std::vector<Branch>(parts, f), std::vector<Branch>(parts, g)});
    }
    op.parameters = {&(*owned)[0].parameter, &(*owned)[1].parameter};
    // p is one row where tokens are taken a few at a time.
    const Shape all{2, 3}, one = tokens_at_once > 0 ? Shape{3} : all;
    return Case<ReversibleChain>(std::move(label), std::move(op), [=](Draw& draw) {
      Tensors in{draw.uniform(all), with_context ? draw.uniform(all) : Tensor()};
      for (Toy& toy : *owned) in.push_back(toy.drawn = draw.uniform(one));
      return in;
    });
  };
  return {chain("three blocks", 3, false), chain("with context", 2, true), chain("no block", 0, false),
          chain("a token at a time", 2, true, 1), chain("sums of branches", 2, true, 0, 3)};
}

}  // namespace ops

Var reversible_chain(const Tape& tape, const Var& x, const Var& context, std::vector<ReversibleBlock> blocks) {
  ops::ReversibleChain chain;
  std::vector<Var> inputs{x, context};
  for (const ReversibleBlock& block : blocks) {
    for (const std::vector<Branch>* branches : {&block.f, &block.g})
      for (const Branch& branch : *branches)
        for (const Parameter* parameter : branch.parameters) {
          if (std::find(chain.parameters.begin(), chain.parameters.end(), parameter) != chain.parameters.end())
            continue;
          chain.parameters.push_back(parameter);
          inputs.push_back(tape ? tape.leaf(*parameter) : Var(parameter->value));
        }
  }
  chain.blocks = std::move(blocks);
  return apply(std::move(chain), std::span<const Var>(inputs));
}

}  // namespace sinkhorn
