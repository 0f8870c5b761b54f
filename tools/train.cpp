#include "tools/train.h"

#include <iostream>

#include "autograd/error.h"

namespace sinkhorn {

int train(const TrainOptions& options) {
  if (options.print_options) {
    std::cout << options_markdown();
    return 0;
  }
  const Settings settings = resolve(options.config_path, options.flags);
  if (options.print_config) {
    std::cout << to_toml(settings);
    return 0;
  }
  fail("train: this build prints configurations only; use --print-config");
}

}  // namespace sinkhorn
