// The one file that sees every op whole: it turns AllOps into the gradient checker's list.
#include "autograd/gradcheck.h"
#include "autograd/ops.h"

namespace sinkhorn {

std::vector<OpCheck> all_op_checks() {
  std::vector<OpCheck> checks;
  for_each(AllOps{}, [&]<class O>() { checks.push_back(op_check<O>()); });
  return checks;
}

}  // namespace sinkhorn
