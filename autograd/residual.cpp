#include "autograd/residual.h"

#include "autograd/ops/elementwise.h"

namespace sinkhorn {

void check(std::string_view op, const Residual& residual) {
  if ((residual.undo || residual.in_place) && residual.onto.node >= 0)
    fail(op, ": a residual that is undone or written in place must be a constant");
}

Var add_to(const Residual& residual, const Var& y) {
  if (!residual) return y;
  check("add_to", residual);
  const Var term = cast(y, residual.onto.value.dtype());
  if (!residual.undo) return add(residual.onto, term);
  return {sub(residual.onto, term.value).value, term.tape, term.node};
}

}  // namespace sinkhorn
