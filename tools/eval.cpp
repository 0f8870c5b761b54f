#include "tools/eval.h"

#include <fmt/format.h>

#include <algorithm>
#include <ostream>

#include "autograd/parallel.h"
#include "tools/checkpoint.h"
#include "tools/device.h"
#include "tools/progress.h"
#include "tools/task_report.h"

namespace sinkhorn {

Fields fields(EvalOptions& o) {
  return {
      {"checkpoint", &o.checkpoint, anything(), "checkpoint file, or a run's folder, whose best one is taken"},
      {"data", &o.data, anything(), "text file; - reads standard input; default the text of the training"},
      {"whole", &o.whole, anything(), "take the whole text, not its validation part (the last tenth)"},
      {"batch_size", &o.batch_size, at_least(1), "sequences in a batch"},
      {"examples", &o.examples, at_least(0), "examples of a task at each length; 0 takes 256"},
      {"device", &o.device, one_of({"auto", "cpu", "cuda"}), "where to compute"},
      {"threads", &o.threads, between(0, 1024), "threads of the CPU backend; 0 takes all cores"},
  };
}

double loss_over(const SinkhornTransformerLM& model, const Tokens& tokens, std::int64_t seq_len,
                 std::int64_t batch_size) {
  // Neighbouring windows share the token that ends one and begins the next: every token is predicted once.
  double sum = 0;
  for (std::int64_t at = 0; at + 1 < tokens.size();) {
    std::vector<std::vector<std::int32_t>> windows;
    for (; std::int64_t(windows.size()) < batch_size && at + 1 < tokens.size(); at += seq_len)
      windows.push_back(tokens.slice(at, std::min(at + seq_len + 1, tokens.size())).to_vector());
    const MaskedIds batch = from_sequences(windows);
    const LanguageModelLoss part =
        autoregressive_loss(model, Scope{}, batch.ids.to(model.device()), batch.mask.to(model.device()));
    sum += part.loss.value.item() * double(part.counted);
  }
  return sum / double(tokens.size() - 1);
}

namespace {

int evaluate_task(const EvalOptions& options, const TrainedModel& trained, std::ostream& out) {
  const TrainConfig& train = trained.record.train;
  const auto refuse = [&](const char* option) {
    fail<UsageError>("eval: ", trained.path, " was trained on task ", train.task, ", which makes its own data; leave ",
                     option, " out");
  };
  if (!options.data.empty()) refuse("--data");
  if (options.whole) refuse("--whole");
  const Task task(train.task, train.task_symbols);
  const std::int64_t examples = options.examples > 0 ? options.examples : 256;
  out << fmt::format("checkpoint  {}, step {}\n", trained.path, grouped(trained.record.step))
      << fmt::format("data        task {}: {} fresh examples of each length, {} symbols\n", task.name(),
                     grouped(examples), task.symbols());
  for (const std::int64_t length : {train.task_length, 2 * train.task_length})
    for (const auto& line :
         to_lines(score_task(task, *trained.model, std::uint64_t(train.seed), length, examples, options.batch_size)))
      out << line << "\n" << std::flush;
  return 0;
}

}  // namespace

int evaluate_checkpoint(const EvalOptions& options, std::ostream& out) {
  if (options.checkpoint.empty())
    fail<UsageError>("eval: --checkpoint is required: a checkpoint file or the folder of a run");
  const Device device = choose_device(options.device).device;
  if (options.threads > 0) set_threads(int(options.threads));
  const TrainedModel trained = load_trained_model(options.checkpoint);
  move_to(device, *trained.model);
  const RunRecord& record = trained.record;
  require_predictor(trained, "eval");
  if (record.train.has_task()) return evaluate_task(options, trained, out);
  if (options.examples > 0)
    fail<UsageError>("eval: ", trained.path,
                     " was trained on a text, and --examples counts those of a task; leave it out");
  Dataset data = load_dataset(options.data.empty() ? record.train.data : options.data, record.train.vocabulary,
                              record.train.seq_len, record.tokenizer);
  if (options.whole) data.use_whole_text();
  const double loss =
      loss_over(trained.model->language_model(), data.split.validation, record.train.seq_len, options.batch_size);
  const std::string others = to_text(data.compressed());
  out << fmt::format("checkpoint  {}, step {}\n", trained.path, grouped(record.step))
      << fmt::format("data        {}: {} tokens, {}\n", data.name, grouped(data.split.validation.size()),
                     options.whole                                 ? "the whole text"
                     : data.fingerprint == record.data_fingerprint ? "the validation part"
                                                                   : "the last tenth");
  if (!data.note.empty()) out << "note        " << data.note << "\n";
  out << fmt::format("loss        {:.4f} nats a token, {:.4f} bits per character{}\n", loss,
                     data.bits_per_character(loss), others.empty() ? "" : " (" + others + ")");
  return 0;
}

}  // namespace sinkhorn
