#include "tools/generate.h"

#include <unistd.h>

#include <algorithm>
#include <ostream>

#include "autograd/parallel.h"
#include "tools/checkpoint.h"
#include "tools/device.h"
#include "tools/interrupt.h"
#include "tools/read_file.h"
#include "tools/task.h"
#include "tools/utf8.h"

namespace sinkhorn {
namespace {

/// Source and separator, from what a user typed.
std::vector<std::int32_t> task_prompt(const TrainedModel& trained, std::string text) {
  while (!text.empty() && (text.back() == '\n' || text.back() == '\r')) text.pop_back();  // of a file or a pipe
  const Task task(trained.record.train.task, trained.record.train.task_symbols);
  std::vector<std::int32_t> tokens = task.parse_source(text, "prompt");
  const std::int64_t needed = std::int64_t(tokens.size() + 1 + task.answer(tokens, "prompt").size()),
                     most = trained.model->config().max_length();
  if (needed > most)
    fail<DataError>("prompt: ", tokens.size(), " symbols with their answer take ", needed, " positions, but the model has ",
                    most, "; give a shorter one");
  tokens.push_back(Task::separator);
  return tokens;
}

std::string without_controls(std::string text) {
  std::replace_if(
      text.begin(), text.end(), [](unsigned char c) { return (c < 0x20 && c != '\n' && c != '\t') || c == 0x7F; }, '?');
  return text;
}

}  // namespace

Fields fields(GenerateOptions& o) {
  return {
      {"checkpoint", &o.checkpoint, anything(), "checkpoint file, or a run's folder, whose best one is taken"},
      {"prompt", &o.prompt, anything(), "text to continue; default a newline"},
      {"prompt_file", &o.prompt_file, anything(), "file with the text to continue; - reads standard input"},
      {"length", &o.length, at_least(0), "tokens to add"},
      {"temperature", &o.temperature, between(0, 100), "0 takes the likeliest token"},
      {"top_k", &o.top_k, at_least(0), "draw among the k likeliest tokens; 0 among all"},
      {"top_p", &o.top_p, above_to(0, 1), "draw among the likeliest tokens of this total probability"},
      {"seed", &o.seed, at_least(0), "the text is a function of checkpoint, prompt and seed"},
      {"samples", &o.samples, at_least(1), "how many continuations to print"},
      {"device", &o.device, one_of({"auto", "cpu", "cuda"}), "where to compute"},
      {"threads", &o.threads, between(0, 1024), "threads of the CPU backend; 0 takes all cores"},
  };
}

std::vector<std::int32_t> prompt_tokens(const Tokenizer& tokenizer, const std::string& text, const std::string& where) {
  if (!text.empty()) return tokenizer.encode(text, where);
  try {
    return tokenizer.encode("\n", where);
  } catch (const DataError&) {
    return {0};
  }
}

void stream_continuation(const SinkhornTransformerLM& model, const Tokenizer& tokenizer,
                         const std::vector<std::int32_t>& prompt, std::int64_t length, const Sampling& sampling,
                         const Rng& rng, std::ostream& out) {
  const bool terminal = isatty(STDOUT_FILENO);
  Utf8Stream stream;
  const auto show = [&](const std::string& text) { out << (terminal ? without_controls(text) : text) << std::flush; };
  generate(model, {prompt}, length, sampling, rng, [&](std::size_t, std::int32_t token) {
    show(stream.push(tokenizer.piece(token)));
    return bool(out) && !interrupted();
  });
  show(stream.finish() + "\n");
}

int generate_text(const GenerateOptions& options, std::ostream& out) {
  if (options.checkpoint.empty())
    fail<UsageError>("generate: --checkpoint is required: a checkpoint file or the folder of a run");
  if (!options.prompt.empty() && !options.prompt_file.empty())
    fail<UsageError>("generate: --prompt and --prompt-file exclude each other; give one of them");
  choose_device(options.device);
  if (options.threads > 0) set_threads(int(options.threads));
  const std::string prompt =
      options.prompt_file.empty() ? options.prompt : read_file(options.prompt_file, "--prompt-file");
  const TrainedModel trained = load_trained_model(options.checkpoint);
  const Tokenizer& tokenizer = trained.record.tokenizer;
  Sampling sampling{.temperature = options.temperature, .top_k = options.top_k, .top_p = options.top_p};
  std::vector<std::int32_t> tokens;
  std::string shown = prompt;
  if (trained.record.train.has_task()) {
    tokens = task_prompt(trained, prompt);
    shown = tokenizer.decode(tokens);
    sampling.end_token = Task::end;
  } else {
    tokens = prompt_tokens(tokenizer, prompt, "prompt");
  }

  const InterruptGuard guard;
  for (std::int64_t sample = 0; sample < options.samples && out && !interrupted(); ++sample) {
    if (options.samples > 1) out << "--- sample " << sample + 1 << "\n";
    out << shown;
    stream_continuation(*trained.model, tokenizer, tokens, options.length, sampling,
                        Rng(std::uint64_t(options.seed)).split(std::uint32_t(sample)), out);
  }
  return interrupted() ? 130 : 0;
}

}  // namespace sinkhorn
