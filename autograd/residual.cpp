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
  const DType from = y.value.dtype(), to = residual.onto.value.dtype();
  if (from == to && !residual.undo) return add(residual.onto, y);
  return apply(ops::Cast{from, to, {}, residual.undo, residual.in_place}, {y, residual.onto});
}

}  // namespace sinkhorn
