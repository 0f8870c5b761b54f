#include "tools/training_data.h"

#include <fmt/format.h>

#include <iostream>
#include <numbers>

#include "tools/generate.h"
#include "tools/progress.h"
#include "tools/trainer.h"

namespace sinkhorn {
namespace {

constexpr std::uint32_t kSampleStream = 3;  // apart from the trainer's

class Text : public TrainingData {
 public:
  explicit Text(const TrainConfig& train)
      : train_(train), data_(load_dataset(train.data, train.vocabulary, train.seq_len)) {}

  const Tokenizer& tokenizer() const override { return data_.tokenizer; }
  std::string name() const override { return data_.name; }
  std::string fingerprint() const override { return data_.fingerprint; }
  std::int64_t bytes() const override { return data_.bytes; }
  std::int64_t characters() const override { return data_.characters; }
  std::vector<std::pair<std::string, std::string>> banner() const override {
    std::vector<std::pair<std::string, std::string>> lines = {
        {"data", fmt::format("{}: {} characters, {} different tokens; {} tokens to train on, {} to validate",
                             data_.name, grouped(data_.characters), data_.tokenizer.size(),
                             grouped(data_.split.train.size()), grouped(data_.split.validation.size()))}};
    if (!data_.note.empty()) lines.emplace_back("note", data_.note);
    return lines;
  }

  Batch training_batch(std::int64_t step, std::int64_t micro_step) const override {
    return to_batch(training_windows(data_.split.train, train_.batch_size, train_.seq_len, std::uint64_t(train_.seed),
                                     step, micro_step));
  }
  Batch validation_batch(std::int64_t index) const override {
    return to_batch(
        validation_windows(data_.split.validation, train_.batch_size, train_.seq_len, index, train_.eval_batches));
  }
  double bits_per_character(double nats_per_token) const override { return data_.bits_per_character(nats_per_token); }
  std::vector<CompressedSize> compressed() const override { return data_.compressed(); }

  void show_sample(const SequenceModel& model, std::ostream& out) const override {
    out << fmt::format("sample, temperature {}:\n", train_.sample_temperature) << train_.sample_prompt;
    stream_continuation(
        model.language_model(), data_.tokenizer, prompt(), train_.sample_length,
        {.temperature = train_.sample_temperature, .top_k = train_.sample_top_k, .top_p = train_.sample_top_p},
        Rng(std::uint64_t(train_.seed)).split(kSampleStream), out);
  }
  std::vector<std::string> next_flags() const override { return {"--prompt", "The "}; }

  std::vector<std::int32_t> prompt() const {
    return prompt_tokens(data_.tokenizer, train_.sample_prompt, "--sample-prompt");
  }

 private:
  TrainConfig train_;
  Dataset data_;
};

class Synthetic : public TrainingData {
 public:
  Synthetic(const TrainConfig& train, std::int64_t bucket)
      : train_(train),
        rows_{train.encoder_decoder, train.seq_len, train.task_shift ? bucket : 0},
        task_(train.task, train.task_symbols),
        tokenizer_(task_.tokenizer()) {}

  const Tokenizer& tokenizer() const override { return tokenizer_; }
  std::string name() const override { return "task " + task_.name(); }
  std::string fingerprint() const override {
    return fmt::format("task {}, length {}, {} symbols", task_.name(), train_.task_length, task_.symbols());
  }
  std::int64_t bytes() const override { return 0; }
  std::vector<std::pair<std::string, std::string>> banner() const override {
    Draws draws = {{std::uint64_t(train_.seed), 0}, 0};
    const TaskExample example = task_.draw(draws, std::min<std::int64_t>(train_.task_length, 6));
    return {{"data", fmt::format("task {}: lengths 1 to {}, {} symbols ({}), for example {}/{}.", task_.name(),
                                 train_.task_length, task_.symbols(), task_.alphabet(),
                                 tokenizer_.decode(example.source), tokenizer_.decode(example.target))}};
  }

  Batch training_batch(std::int64_t step, std::int64_t micro_step) const override {
    return batch(TaskStream::training, step, micro_step);
  }
  Batch validation_batch(std::int64_t index) const override { return batch(TaskStream::validation, index, 0); }
  double bits_per_character(double nats_per_token) const override { return nats_per_token / std::numbers::ln2; }
  std::vector<TaskScore> scores(const SequenceModel& model) const override {
    std::vector<TaskScore> result;
    for (const std::int64_t length : {train_.task_length, 2 * train_.task_length})
      result.push_back(score_task(task_, model, std::uint64_t(train_.seed), length,
                                  train_.eval_batches * train_.batch_size, train_.batch_size));
    return result;
  }

  void show_sample(const SequenceModel& model, std::ostream& out) const override {
    constexpr std::int64_t count = 3;
    out << "answers, source/target:\n";
    for (const auto& line : answer_lines(task_, model, std::uint64_t(train_.seed), train_.task_length, count))
      out << line << "\n";
  }
  std::vector<std::string> next_flags() const override {
    Draws draws = {{std::uint64_t(train_.seed), 1}, 0};
    const std::int64_t length = std::min<std::int64_t>(train_.task_length, 6);
    return {"--temperature", "0", "--prompt", tokenizer_.decode(task_.draw(draws, length).source)};
  }

 private:
  Batch batch(TaskStream stream, std::int64_t step, std::int64_t micro_step) const {
    std::vector<PlacedExample> rows;
    for (std::int64_t row = 0; row < train_.batch_size; ++row)
      rows.push_back(task_example(task_, {std::uint64_t(train_.seed), stream, step, micro_step, row}, 1,
                                  train_.task_length, rows_));
    return to_batch(rows, rows_);
  }

  TrainConfig train_;
  TaskRows rows_;
  Task task_;
  Tokenizer tokenizer_;
};

}  // namespace

std::unique_ptr<TrainingData> open_training_data(const Settings& settings) {
  const TrainConfig& train = settings.train;
  if (train.has_task()) return std::make_unique<Synthetic>(train, settings.model.bucket_size);
  auto text = std::make_unique<Text>(train);
  text->prompt();  // refused before a run begins
  return text;
}

}  // namespace sinkhorn
