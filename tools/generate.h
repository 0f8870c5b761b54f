// `sinkhorn generate`: text, or a task's answer, from a trained model as it comes.
#pragma once
#include <iosfwd>

#include "models/generate.h"
#include "tools/settings.h"
#include "tools/tokenizer.h"

namespace sinkhorn {

struct GenerateOptions {
  std::string checkpoint;
  std::string prompt, prompt_file;
  std::int64_t length = 400;
  double temperature = 0.8;
  std::int64_t top_k = 0;
  double top_p = 1;
  std::int64_t seed = 1, samples = 1;
  std::string device = "auto";
  std::int64_t threads = 0;
};
/// The table of options; its slots point into `options`.
Fields fields(GenerateOptions& options);

/// Prints the prompt and its continuation. Returns the exit code; errors are thrown.
int generate_text(const GenerateOptions& options, std::ostream& out);

/// Writes `length` tokens that continue `prompt` to `out` as they are drawn: valid UTF-8, and on a terminal no control
/// characters but newlines and tabs. Stops early if `out` fails or the user interrupts.
void stream_continuation(const SinkhornTransformerLM& model, const Tokenizer& tokenizer,
                         const std::vector<std::int32_t>& prompt, std::int64_t length, const Sampling& sampling,
                         const Rng& rng, std::ostream& out);

/// The tokens of `text`, or, if it is empty, of a newline or another token to begin with. Throws DataError, beginning
/// with `where`, for a character that the model does not know.
std::vector<std::int32_t> prompt_tokens(const Tokenizer& tokenizer, const std::string& text, const std::string& where);

}  // namespace sinkhorn
