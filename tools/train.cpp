#include "tools/train.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <filesystem>
#include <iostream>
#include <memory>
#include <optional>

#include "autograd/parallel.h"
#include "autograd/pool.h"
#include "models/run_folder.h"
#include "notebooks/kit/drawing.h"
#include "tools/batches_ahead.h"
#include "tools/checkpoint.h"
#include "tools/device.h"
#include "tools/hint.h"
#include "tools/interrupt.h"
#include "tools/memory_budget.h"
#include "tools/progress.h"
#include "tools/resume.h"
#include "tools/run_log.h"
#include "tools/training_data.h"

namespace sinkhorn {
namespace {

using Clock = std::chrono::steady_clock;

const Clock::time_point process_start = Clock::now();  // once its libraries are loaded

double milliseconds_since(Clock::time_point start) {
  return std::chrono::duration<double, std::milli>(Clock::now() - start).count();
}

class Run {
 public:
  Run(Settings settings, ChosenDevice device, bool shows_memory)
      : settings_(std::move(settings)), device_(std::move(device)), shows_memory_(shows_memory) {}

  int go() {
    if (settings_.train.resume) {
      prepare_resumed();
    } else {
      prepare_new();
    }
    const InterruptGuard guard;
    banner();
    if (!is_complete()) {
      if (!loop()) {
        std::cout << "interrupted; to go on: " << hint({"train", "--out", settings_.train.out, "--resume"})
                  << std::endl;
        return 130;
      }
    } else {
      std::cout << fmt::format(
          "this run is complete at step {}; {} would go on\n", trainer_->steps_done(),
          has_reached_target() ? "--target-val-loss 0" : fmt::format("--steps {}", 2 * trainer_->steps_done()));
      // It ended between saving its best and its last checkpoint, and was resumed from the best.
      if (!std::filesystem::exists(folder_->path() / RunFolder::step_name(record_.step))) save(false, true);
    }
    finish();
    return interrupted() ? 130 : 0;
  }

 private:
  void prepare_new() {
    TrainConfig& train = settings_.train;
    if (settings_.origins["out"].starts_with("preset ")) train.out = fresh_folder(train.out);
    if (holds_run(train.out))
      fail<DataError>("the folder ", train.out, " holds a run: add --resume to go on with it, or choose another --out");
    data_ = open_training_data(settings_);
    const std::int64_t tokens = data_->tokenizer().size();
    if (settings_.model.num_tokens != 0 && settings_.model.num_tokens != tokens)
      fail<DataError>("num_tokens ", settings_.model.num_tokens, " does not match the vocabulary of ", data_->name(),
                      ", which has ", tokens, "; leave num_tokens out");
    settings_.model.num_tokens = tokens;
    trainer_ = std::make_unique<Trainer>(settings_.model, train, device_.device);
    folder_.emplace(train.out);
    folder_->kept = int(train.keep);
    log_.emplace(train.out, 0);
  }

  void prepare_resumed() {
    if (settings_.origins["out"].starts_with("preset ")) settings_.train.out = latest_folder(settings_.train.out);
    const std::string out = settings_.train.out;
    if (!holds_run(out))
      fail<DataError>("nothing to resume: ", out, " holds no checkpoint; leave --resume out to start");
    folder_.emplace(out);
    const safetensors::File file = newest_state();
    record_ = read_record(file);
    if (record_.data_fingerprint.empty())
      fail<DataError>(file.path,
                      ": holds imported weights alone, without the state of a training to go on with; "
                      "start a new run with another --out");
    settings_ = settings_to_resume(settings_, record_, file.path);
    const TrainConfig& train = settings_.train;
    folder_->kept = int(train.keep);
    // A vocabulary of other data is the clearer complaint, so it comes before that the data is another one.
    data_ = open_training_data(settings_);
    require_same_vocabulary(data_->tokenizer(), record_.tokenizer, file.path);
    if (data_->fingerprint() != record_.data_fingerprint)
      fail<DataError>("data: ", data_->name(), " is not the text this run was trained on (", data_->fingerprint(),
                      " here, ", record_.data_fingerprint, " then); give that text with --data, or start a new run");
    trainer_ = std::make_unique<Trainer>(settings_.model, train, device_.device);
    load_checkpoint(file, record_, *trainer_);
    last_saved_ = file.path;
    log_.emplace(out, record_.step);
  }

  /// The newest good checkpoint; the best one may be newer than the last regular one, and is as complete.
  safetensors::File newest_state() {
    NewestCheckpoint newest = folder_->newest();
    for (const auto& line : newest.skipped) std::cerr << "sinkhorn: skipped " << line << std::endl;
    const std::filesystem::path best = folder_->path() / RunFolder::best_name;
    if (std::filesystem::exists(best)) {
      try {
        safetensors::File file = read_checkpoint(best);
        if (!newest.checkpoint || read_record(file).step > newest.checkpoint->step) return file;
      } catch (const DataError& error) {
        std::cerr << "sinkhorn: skipped " << error.what() << std::endl;
      }
    }
    if (newest.checkpoint) return std::move(newest.checkpoint->file);
    fail<DataError>("nothing to resume: no checkpoint in ", folder_->path().string(),
                    " is usable; start a new run with another --out");
  }

  void banner() {
    const TrainConfig& train = settings_.train;
    const ModelConfig& model = settings_.model;
    const auto line = [](const char* what, const std::string& text) {
      std::cout << fmt::format("{:<8} {}\n", what, text);
    };
    line("device", device_.device == Device::cuda
                       ? device_.why
                       : fmt::format("CPU, {} thread{}{}", threads(), threads() == 1 ? "" : "s",
                                     device_.why.empty() ? "" : " (" + device_.why + ")"));
    if (train.precision == "bf16")
      line("compute", "products and attention in bf16; parameters, gradients, residual stream and sums in f32");
    if (train.precision == "tf32")
      line("compute", device_.device == Device::cuda ? "products in TF32" : "f32 (TF32 is a GPU's)");
    line("model", fmt::format("{} parameters: dim {}, depth {}, {} heads ({} local), buckets of {}{}",
                              grouped(trainer_->parameters().count()), model.dim, model.depth, model.heads,
                              model.n_local_attn_heads, model.bucket_size, model.reversible ? ", reversible" : ""));
    for (const auto& [what, text] : data_->banner()) line(what.c_str(), text);
    compressed_ = data_->compressed();
    if (!compressed_.empty())
      line("compare", to_text(compressed_) + " bits per character of the validation part, of 16 MiB at most");

    std::string config = train.resume           ? "as the checkpoint has it"
                         : train.preset.empty() ? "defaults"
                                                : "preset " + train.preset;
    int flags = 0, file_options = 0;
    for (const auto& [option, origin] : settings_.origins) {
      if (option == "preset" || option == "out" || option == "resume") continue;
      flags += origin.starts_with("flag ");
      file_options += origin.find(':') != std::string::npos;
    }
    for (const auto& [count, what] : {std::pair(file_options, "from a file"), {flags, "by flag"}})
      if (count > 0) config += fmt::format(", {} option{} {}", count, count == 1 ? "" : "s", what);
    line("config", config + "; --print-config shows every value and its origin");
    line("folder", train.out + (train.resume ? fmt::format(", resumed at step {}", trainer_->steps_done()) : ""));
    std::cout << std::flush;

    const std::int64_t left = train.steps - trainer_->steps_done();
    if (left <= 0) return;
    if (shows_memory_) show_budget();
    const Trainer::Cost cost = trainer_->measure(data_->training_batch(trainer_->steps_done() + 1, 0));
    // An evaluation is a forward pass alone, a third of a step's work.
    const std::int64_t evaluations = left / train.eval_every + 1;
    const double passes = double(left * train.accumulate) + double(evaluations * train.eval_batches) / 3;
    const double seconds = cost.milliseconds / 1000 * passes;
    line("memory", fmt::format("about {:.0f} MiB (measured on one batch)", double(cost.peak_bytes) / (1 << 20)));
    line("time", fmt::format("about {} for {} steps of {} tokens", duration(seconds), grouped(left),
                             grouped(tokens_per_step())));
    std::cout << std::endl;
  }

  void show_budget() {
    budget_ = memory_budget(settings_.model, settings_.train, device_.device, trainer_->parameters().count());
    std::cout << (budget_ ? to_table(*budget_)
                          : std::string("memory   not counted ahead for this kind of model (reversible language models "
                                        "are); measured behind the run\n"))
              << std::flush;
  }

  /// What this process did: steps, time with evaluations and checkpoints, and the most that it held at once.
  void show_cost(std::int64_t steps, double seconds) const {
    const std::string counted = budget_ ? fmt::format(" ({} counted ahead)", in_units(budget_->peak().bytes())) : "";
    std::cout << fmt::format("cost     {} for {} step{} of {} tokens, {} tokens/s in all; {} at the fullest moment{}\n",
                             duration(seconds), grouped(steps), steps == 1 ? "" : "s", grouped(tokens_per_step()),
                             grouped(std::int64_t(double(steps * tokens_per_step()) / seconds)),
                             in_units(Pool::of(device_.device).stats().peak), counted);
  }

  bool has_reached_target() const {
    return settings_.train.target_val_loss > 0 && record_.best_val_loss <= settings_.train.target_val_loss;
  }
  bool is_complete() const { return trainer_->steps_done() >= settings_.train.steps || has_reached_target(); }

  std::int64_t tokens_per_step() const {
    return settings_.train.batch_size * settings_.train.accumulate * settings_.train.seq_len;
  }

  double validation_loss() const {
    const TrainConfig& train = settings_.train;
    double sum = 0;
    for (std::int64_t i = 0; i < train.eval_batches; ++i) sum += trainer_->evaluate(data_->validation_batch(i));
    return sum / double(train.eval_batches);
  }

  /// At least one step. False if the user interrupted it; the state is saved then.
  bool loop() {
    const TrainConfig& train = settings_.train;
    const std::int64_t done = trainer_->steps_done();
    Progress progress(std::cout, drawing::terminal_columns(), train.log_every, done);
    BatchesAhead batches([this](std::int64_t step, std::int64_t micro) { return data_->training_batch(step, micro); },
                         done + 1, train.steps, train.accumulate, device_.device);
    const auto start = Clock::now();
    Pool::of(device_.device).reset_peak();
    try {
      do step(batches, progress);
      while (!is_complete() && !interrupted());
    } catch (const NonFinite& error) {
      progress.clear();
      fail<NonFinite>(error.what(), last_good());
    } catch (const OutOfMemory& error) {
      progress.clear();
      fail<OutOfMemory>(error.what(), last_good());
    } catch (...) {
      progress.clear();
      throw;
    }
    progress.clear();
    batches_waited_for_ = batches.waits();
    show_cost(trainer_->steps_done() - done, milliseconds_since(start) / 1000);
    return is_complete();
  }

  void step(BatchesAhead& batches, Progress& progress) {
    const TrainConfig& train = settings_.train;
    const std::int64_t step = trainer_->steps_done() + 1;
    const auto start = Clock::now();
    const StepResult result = trainer_->step([&](std::int64_t micro) { return batches.get(step, micro); });
    batches.send();  // while the device updates the parameters
    const double milliseconds = milliseconds_since(start);
    LogEntry entry{.step = step,
                   .loss = result.loss,
                   .bits_per_character = data_->bits_per_character(result.loss),
                   .val_loss = {},
                   .val_bits_per_character = {},
                   .learning_rate = result.learning_rate,
                   .gradient_norm = result.gradient_norm,
                   .tokens_per_second = double(tokens_per_step()) / milliseconds * 1000,
                   .milliseconds = milliseconds};
    const bool last = step == train.steps, best = evaluate_if_due(entry, last);
    log_->add(entry);
    progress.report({.step = step,
                     .steps = train.steps,
                     .loss = entry.loss,
                     .bits_per_character = entry.bits_per_character,
                     .gradient_norm = entry.gradient_norm,
                     .learning_rate = entry.learning_rate,
                     .milliseconds = entry.milliseconds,
                     .tokens_per_second = entry.tokens_per_second});
    if (entry.val_loss) show_evaluation(entry, best, progress);
    if (entry.val_loss && has_reached_target())
      progress.say(fmt::format("reached the target {} at step {}, {:.1f} s after the process started",
                               train.target_val_loss, step, milliseconds_since(process_start) / 1000));
    const bool due = step % train.checkpoint_every == 0 || is_complete() || interrupted();
    if (best || due) save(best, due);
    if (due) progress.say(fmt::format("saved step {}: {}", step, last_saved_));
  }

  /// Fills in the validation loss where one is due. True if it is the best so far.
  bool evaluate_if_due(LogEntry& entry, bool last) {
    if (entry.step % settings_.train.eval_every != 0 && !last) return false;
    entry.val_loss = validation_loss();
    entry.val_bits_per_character = data_->bits_per_character(*entry.val_loss);
    entry.scores = data_->scores(trainer_->model());
    if (!(*entry.val_loss < record_.best_val_loss)) return false;
    record_.best_val_loss = *entry.val_loss;
    record_.best_step = entry.step;
    return true;
  }

  void show_evaluation(const LogEntry& entry, bool best, Progress& progress) {
    progress.say(fmt::format("step {}: validation loss {:.4f}, {:.3f} bits per character{}", entry.step,
                             *entry.val_loss, *entry.val_bits_per_character, best ? ", the best so far" : ""));
    for (const TaskScore& score : entry.scores)
      for (const auto& line : to_lines(score)) progress.say("  " + line);
    std::vector<double> others;
    for (const auto& size : compressed_) others.push_back(size.bits);
    if (warned_ || !too_good(*entry.val_bits_per_character, others, data_->characters())) return;
    warned_ = true;
    progress.say(fmt::format(
        "warning: too good to be true: {:.2f} bits per character, where compressors need {:.2f}. Either the validation "
        "part repeats the training part, or the model sees the future; to find out: {}",
        *entry.val_bits_per_character, *std::min_element(others.begin(), others.end()),
        hint({"leak-check", "--checkpoint", settings_.train.out})));
  }

  void save(bool best, bool due) {
    const Tensor values = trainer_->parameters().values.to(Device::cpu);
    const auto numbers = values.span<float>();
    if (!std::all_of(numbers.begin(), numbers.end(), [](float v) { return std::isfinite(v); }))
      fail<NonFinite>("step ", trainer_->steps_done(),
                      ": the update made parameters infinite, so they are not saved; lower --learning-rate");
    record_.model = settings_.model;
    record_.train = settings_.train;
    record_.tokenizer = data_->tokenizer();
    record_.step = trainer_->steps_done();
    record_.data_name = data_->name();
    record_.data_fingerprint = data_->fingerprint();
    record_.data_bytes = data_->bytes();
    log_->sync();  // no checkpoint without its log lines
    const std::string device_name = device_.device == Device::cuda ? "cuda" : "cpu";
    const safetensors::Metadata metadata = to_metadata(record_, trainer_->rng_key(), device_name);
    const auto items = checkpoint_items(*trainer_);
    if (best) folder_->save_best(record_.step, metadata, items);
    if (!due) return;
    folder_->save(record_.step, metadata, items);
    last_saved_ = (folder_->path() / RunFolder::step_name(record_.step)).string();
  }

  std::string last_good() const {
    return last_saved_.empty() ? "; there is no checkpoint yet" : "; the last good checkpoint is " + last_saved_;
  }

  void finish() {
    const TrainConfig& train = settings_.train;
    if (record_.best_step > 0)
      std::cout << fmt::format("best: validation loss {:.4f}, {:.3f} bits per character, at step {}{}\n",
                               record_.best_val_loss, data_->bits_per_character(record_.best_val_loss),
                               record_.best_step, compressed_.empty() ? "" : " (" + to_text(compressed_) + ")");
    if (batches_waited_for_ > 10 + trainer_->steps_done() / 20)
      std::cout << fmt::format("note: waited for {} batches: the data is read more slowly than the model learns\n",
                               grouped(batches_waited_for_));
    if (train.sample_length > 0) {
      std::cout << "\n";
      data_->show_sample(trainer_->model(), std::cout);
    }
    std::vector<std::string> next = {"generate", "--checkpoint", train.out};
    for (const auto& flag : data_->next_flags()) next.push_back(flag);
    std::cout << "\nnext: " << hint(next) << std::endl;
  }

  Settings settings_;
  ChosenDevice device_;
  std::unique_ptr<TrainingData> data_;
  std::unique_ptr<Trainer> trainer_;
  std::optional<RunFolder> folder_;
  std::optional<RunLog> log_;
  RunRecord record_;  // the best result so far; the rest is filled in when it is saved
  std::vector<CompressedSize> compressed_;
  std::string last_saved_;
  std::int64_t batches_waited_for_ = 0;
  bool warned_ = false, shows_memory_;
  std::optional<MemoryBudget> budget_;
};

}  // namespace

bool too_good(double bits_per_character, const std::vector<double>& compressors, std::int64_t characters) {
  if (compressors.empty()) return false;
  const double least = *std::min_element(compressors.begin(), compressors.end());
  return least > 2 && bits_per_character < (characters <= 10'000'000 ? 0.6 : 0.4) * least;
}

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
  const ChosenDevice device = choose_device(settings.train.device);
  if (settings.train.threads > 0) set_threads(int(settings.train.threads));
  return Run(settings, device, options.memory).go();
}

}  // namespace sinkhorn
