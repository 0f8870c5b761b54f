// `sinkhorn eval`: how well a checkpoint predicts a text, or does the task it was trained on.
#pragma once
#include <iosfwd>

#include "models/language_model.h"
#include "tools/dataset.h"
#include "tools/settings.h"

namespace sinkhorn {

struct EvalOptions {
  std::string checkpoint;
  std::string data;  // empty: the text that the checkpoint was trained on
  bool whole = false;
  std::int64_t batch_size = 8;
  std::int64_t examples = 0;  // of a task; 0: 256
  std::string device = "auto";
  std::int64_t threads = 0;
};
/// The table of options; its slots point into `options`.
Fields fields(EvalOptions& options);

/// Prints loss and bits per character of the validation part of a text, or of all of it; for a model of a task, its
/// scores on fresh examples of the training length and of twice that. Returns the exit code; errors are thrown.
int evaluate_checkpoint(const EvalOptions& options, std::ostream& out);

/// Mean loss in nats of all tokens but the first: windows of `seq_len`, one after another, each predicted from its own
/// tokens alone.
double loss_over(const SinkhornTransformerLM& model, const Tokens& tokens, std::int64_t seq_len,
                 std::int64_t batch_size);

}  // namespace sinkhorn
