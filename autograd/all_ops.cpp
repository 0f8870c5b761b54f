// The one file that sees every op whole: it turns AllOps into the gradient checker's list.
#include "autograd/gradcheck.h"
#include "autograd/ops/cross_entropy.h"
#include "autograd/ops/elementwise.h"
#include "autograd/ops/embedding.h"
#include "autograd/ops/layer_norm.h"
#include "autograd/ops/matmul.h"
#include "autograd/ops/routing.h"
#include "autograd/ops/softmax.h"

namespace sinkhorn {

std::vector<OpCheck> all_op_checks() {
  std::vector<OpCheck> checks;
  for_each(AllOps{}, [&]<class O>() { checks.push_back(op_check<O>()); });
  return checks;
}

}  // namespace sinkhorn
