// Scores of a model at a task: against the model asked token by token, and what models learn.
#include "tools/task_report.h"

#include <gtest/gtest.h>

#include <algorithm>

#include "build_info.h"
#include "tests/shared.h"
#include "tools/trainer.h"
#include "tools/training_data.h"

namespace sinkhorn {
namespace {

using Tokens = std::vector<std::int32_t>;

Settings small_settings(const std::string& task, const Flags& more = {}) {
  Flags flags = {{"task", task},
                 {"task_length", "8"},
                 {"dim", "48"},
                 {"heads", "4"},
                 {"depth", "2"},
                 {"bucket_size", "4"},
                 {"steps", "400"},
                 {"batch_size", "32"},
                 {"learning_rate", "3e-3"},
                 {"embedding_init_std", "1"}};
  if (task == "recall") flags.emplace_back("task_symbols", "16");  // keys are distinct, at twice the length too
  for (const auto& flag : more) {
    std::erase_if(flags, [&](const auto& old) { return old.first == flag.first; });
    flags.push_back(flag);
  }
  Settings settings = resolve("", flags);
  settings.model.num_tokens = Task(task, settings.train.task_symbols).num_tokens();
  return settings;
}

Tensor one_row(const Tokens& tokens) { return Tensor::from(tokens, {1, std::int64_t(tokens.size())}); }

/// The likeliest token of an answer of which `seen` is there.
std::int32_t next_token(const SequenceModel& model, const Tokens& source, const Tokens& seen) {
  Tokens read = model.has_encoder() ? Tokens{} : source;
  read.push_back(Task::separator);
  read.insert(read.end(), seen.begin(), seen.end());
  const Var logits = model.has_encoder() ? model.encoder_decoder()(Scope{}, {one_row(source), {}}, {one_row(read), {}})
                                         : padded(model.language_model(), Scope{}, one_row(read));
  const std::vector<double> numbers = logits.value.to_vector();
  const auto last = numbers.end() - logits.value.shape()[2];
  return std::int32_t(std::max_element(last, numbers.end()) - last);
}

/// Each task for a decoder alone, and for an encoder and a decoder.
std::vector<std::pair<std::string, bool>> every_task() {
  std::vector<std::pair<std::string, bool>> all;
  for (const auto& name : Task::names())
    for (const bool pair : {false, true}) all.emplace_back(name, pair);
  return all;
}

TEST(TaskReport, ScoresAreThoseOfTheModelAskedTokenByToken) {
  for (const auto& [name, pair] : every_task()) {
    const Settings settings = small_settings(name, {{"encoder_decoder", pair ? "true" : "false"}});
    const Task task(name, settings.train.task_symbols);
    const SequenceModel model(settings.model, pair, Rng(3));
    constexpr std::int64_t count = 6, length = 8;
    SequenceScore forced, generated;
    for (std::int64_t row = 0; row < count; ++row) {
      const TaskExample example =
          task_example(task, {.seed = 5, .stream = TaskStream::evaluation, .step = length, .row = row}, length, length,
                       {})
              .example;
      Tokens right = example.target, given, own, likeliest;
      right.push_back(Task::end);
      for (const auto token : right) {
        likeliest.push_back(next_token(model, example.source, given));
        given.push_back(token);
        if (own.empty() || own.back() != Task::end) own.push_back(next_token(model, example.source, own));
      }
      forced.add(likeliest, example.target, Task::end);
      generated.add(own, example.target, Task::end);
    }
    for (const std::int64_t batch_size : {1, 4, 6}) {
      const TaskScore score = score_task(task, model, 5, length, count, batch_size);
      EXPECT_EQ(score.length, length);
      for (const auto& [got, want] : {std::pair(&score.forced, &forced), {&score.generated, &generated}}) {
        EXPECT_EQ(got->sequences(), count);
        EXPECT_DOUBLE_EQ(got->exact_match(), want->exact_match()) << name;
        EXPECT_DOUBLE_EQ(got->token_accuracy(), want->token_accuracy()) << name;
        EXPECT_DOUBLE_EQ(got->edit_distance(), want->edit_distance()) << name;
      }
    }
  }
}

// Padding, of sources too, changes no answer.
TEST(TaskReport, AnExampleReadsTheSameBesideALongerOne) {
  for (const bool pair : {false, true}) {
    const Settings settings = small_settings("copy", {{"encoder_decoder", pair ? "true" : "false"}});
    const Task task("copy", settings.train.task_symbols);
    const SequenceModel model(settings.model, pair, Rng(3));
    const auto of_length = [&](std::int64_t length) { return task_example(task, {.seed = 1}, length, length, {}); };
    const TaskRows rows{.encoder_decoder = pair};
    const std::vector<double> alone = model(Scope{}, to_batch({of_length(3)}, rows)).value.to_vector(),
                              beside = model(Scope{}, to_batch({of_length(3), of_length(7)}, rows)).value.to_vector();
    for (std::size_t i = 0; i < alone.size(); ++i) ASSERT_NEAR(alone[i], beside[i], 1e-4) << pair;
  }
}

TEST(TaskReport, LinesSayAllOfIt) {
  TaskScore score{.length = 16, .forced = {}, .generated = {}};
  score.forced.add({5, 6, 0}, {5, 6}, 0);
  score.generated.add({5, 7, 0}, {5, 6}, 0);
  EXPECT_EQ(to_lines(score),
            (std::vector<std::string>{
                "length  16, generated:      exact match   0.0 %, token accuracy  66.7 %, edit distance 0.500",
                "length  16, teacher-forced: exact match 100.0 %, token accuracy 100.0 %, edit distance 0.000"}));
}

/// Trains until the loss of 32 batches in a row is below `enough`, since a few may be easy ones, and scores answers at
/// the training length.
TaskScore trained_score(const Settings& settings, double enough) {
  const auto data = open_training_data(settings);
  Trainer trainer(settings.model, settings.train);
  int good = 0;
  while (trainer.steps_done() < settings.train.steps && good < 32) {
    const auto batch = [&](std::int64_t micro) { return data->training_batch(trainer.steps_done() + 1, micro); };
    good = trainer.step(batch).loss > enough ? 0 : good + 1;
  }
  return data->scores(trainer.model()).front();
}

// What is to be said again lies up to four buckets back.
TEST(TaskReport, ModelsLearnToCopyAndToRepeatTwice) {
  if (!build_info::sanitizers.empty()) GTEST_SKIP() << "takes minutes there, and shows nothing new about memory";
  for (const char* task : {"copy", "duplicate"}) {
    const TaskScore score = trained_score(small_settings(task, {{"steps", "900"}, {"eval_batches", "8"}}), 0.002);
    EXPECT_EQ(score.generated.sequences(), 256);
    EXPECT_GT(score.generated.exact_match(), 0.99) << task;
    EXPECT_GT(score.forced.exact_match(), 0.99) << task;
  }
}

TEST(TaskReport, AnEncoderDecoderLearnsToAddOne) {
  if (!build_info::sanitizers.empty()) GTEST_SKIP() << "takes minutes there, and shows nothing new about memory";
  const Settings settings = small_settings("add-one", {{"task_symbols", "10"}, {"eval_batches", "8"}});
  ASSERT_TRUE(settings.train.encoder_decoder);
  EXPECT_GT(trained_score(settings, 0.002).generated.exact_match(), 0.99);
}

// The presets as they are, at the training length.
TEST(TaskReport, PresetsLearnTheirTask) {
  if (!testing::long_tests() || !build_info::sanitizers.empty()) GTEST_SKIP() << "takes minutes";
  const std::vector<std::pair<std::string, double>> least = {{"copy", 0.99},   {"duplicate", 0.99}, {"reverse", 0.99},
                                                             {"recall", 0.99}, {"add-one", 0.99},   {"sort", 0.9}};
  for (const auto& [task, exact] : least) {
    Settings settings = resolve("", {{"task", task}, {"eval_batches", "8"}});
    settings.model.num_tokens = Task(task, settings.train.task_symbols).num_tokens();
    EXPECT_GT(trained_score(settings, 0).generated.exact_match(), exact) << task;
  }
}

}  // namespace
}  // namespace sinkhorn
