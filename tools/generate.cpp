#include "tools/generate.h"

#include <unistd.h>

#include <algorithm>
#include <functional>
#include <ostream>

#include "autograd/parallel.h"
#include "tools/checkpoint.h"
#include "tools/device.h"
#include "tools/interrupt.h"
#include "tools/read_file.h"
#include "tools/task_report.h"
#include "tools/utf8.h"

namespace sinkhorn {
namespace {

/// The source that a user typed.
std::vector<std::int32_t> task_source(const RunRecord& record, std::string text) {
  while (!text.empty() && (text.back() == '\n' || text.back() == '\r')) text.pop_back();  // of a file or a pipe
  const Task task(record.train.task, record.train.task_symbols);
  std::vector<std::int32_t> source = task.parse_source(text, "prompt");
  const auto asked = std::int64_t(source.size()), answered = 1 + std::int64_t(task.answer(source, "prompt").size());
  const std::int64_t needed = record.train.encoder_decoder ? std::max(asked, answered) : asked + answered,
                     most = record.model.max_length();
  if (needed > most)
    fail<DataError>("prompt: ", asked, " symbols and their answer take ", needed, " positions, but the model has ",
                    most, "; give a shorter one");
  return source;
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

namespace {

/// Shows the tokens that `make` makes, as they come.
void stream(const Tokenizer& tokenizer, std::ostream& out, const std::function<void(const OnToken&)>& make) {
  const bool terminal = isatty(STDOUT_FILENO);
  Utf8Stream stream;
  const auto show = [&](const std::string& text) { out << (terminal ? without_controls(text) : text) << std::flush; };
  make([&](std::size_t, std::int32_t token) {
    show(stream.push(tokenizer.piece(token)));
    return bool(out) && !interrupted();
  });
  show(stream.finish() + "\n");
}

}  // namespace

void stream_continuation(const SinkhornTransformerLM& model, const Tokenizer& tokenizer,
                         const std::vector<std::int32_t>& prompt, std::int64_t length, const Sampling& sampling,
                         const Rng& rng, std::ostream& out) {
  stream(tokenizer, out, [&](const OnToken& on_token) { generate(model, {prompt}, length, sampling, rng, on_token); });
}

int generate_text(const GenerateOptions& options, std::ostream& out) {
  if (options.checkpoint.empty())
    fail<UsageError>("generate: --checkpoint is required: a checkpoint file or the folder of a run");
  if (!options.prompt.empty() && !options.prompt_file.empty())
    fail<UsageError>("generate: --prompt and --prompt-file exclude each other; give one of them");
  const Device device = choose_device(options.device).device;
  if (options.threads > 0) set_threads(int(options.threads));
  const std::string prompt =
      options.prompt_file.empty() ? options.prompt : read_file(options.prompt_file, "--prompt-file");
  const TrainedModel trained = load_trained_model(options.checkpoint);
  require_predictor(trained, "generate");
  move_to(device, *trained.model);
  const Tokenizer& tokenizer = trained.record.tokenizer;
  const bool task = trained.record.train.has_task();
  const Sampling sampling{.temperature = options.temperature,
                          .top_k = options.top_k,
                          .top_p = options.top_p,
                          .end_token = task ? std::optional(Task::end) : std::nullopt};
  const auto tokens = task ? task_source(trained.record, prompt) : prompt_tokens(tokenizer, prompt, "prompt");

  // An answer that does not end would push its source out of the model's sight.
  const std::int64_t read = 1 + (trained.record.train.encoder_decoder ? 0 : std::int64_t(tokens.size()));
  const std::int64_t longest = std::min(options.length, trained.record.model.max_length() - read + 1);

  const InterruptGuard guard;
  for (std::int64_t sample = 0; sample < options.samples && out && !interrupted(); ++sample) {
    if (options.samples > 1) out << "--- sample " << sample + 1 << "\n";
    const Rng rng = Rng(std::uint64_t(options.seed)).split(std::uint32_t(sample));
    if (task) {
      out << tokenizer.decode(tokens) << "/";
      stream(tokenizer, out,
             [&](const OnToken& on_token) { answer(*trained.model, {tokens}, longest, sampling, rng, on_token); });
    } else {
      out << prompt << std::flush;
      stream_continuation(trained.model->language_model(), tokenizer, tokens, options.length, sampling, rng, out);
    }
  }
  return interrupted() ? 130 : 0;
}

}  // namespace sinkhorn
