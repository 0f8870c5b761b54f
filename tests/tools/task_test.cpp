// Synthetic tasks: every example is right by its definition, lengths are uniform, and streams do not meet.
#include "tools/task.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <functional>
#include <map>
#include <set>

#include "autograd/error.h"
#include "tools/task_batches.h"

namespace sinkhorn {
namespace {

using Tokens = std::vector<std::int32_t>;

constexpr std::int64_t symbols = 12;

PlacedExample example_at(const Task& task, const TaskPlace& place, std::int64_t longest, const TaskRows& rows = {}) {
  return task_example(task, place, 1, longest, rows);
}

std::string message_of(const std::function<void()>& f) {
  try {
    f();
  } catch (const std::exception& error) {
    return error.what();
  }
  return "";
}

void expect_says(const std::string& text, const std::string& part) {
  EXPECT_NE(text.find(part), std::string::npos) << "expected: " << part << "\nit said:  " << text;
}

// Each definition once more, said another way than the task says it.
bool is_right(const std::string& name, const Tokens& source, const Tokens& target) {
  const std::size_t n = source.size();
  const auto all = [&](std::size_t count, const std::function<bool(std::size_t)>& holds) {
    if (target.size() != count) return false;
    for (std::size_t i = 0; i < count; ++i)
      if (!holds(i)) return false;
    return true;
  };
  if (name == "copy") return all(n, [&](auto i) { return target[i] == source[i]; });
  if (name == "duplicate") return all(2 * n, [&](auto i) { return target[i] == source[i % n]; });
  if (name == "reverse") return all(n, [&](auto i) { return target[i] == source[n - 1 - i]; });
  if (name == "add-one")
    return all(n, [&](auto i) {
      return target[i] == (source[i] == Task::first_symbol + symbols - 1 ? Task::first_symbol : source[i] + 1);
    });
  if (name == "sort") {
    std::map<std::int32_t, int> left;
    for (const auto token : source) ++left[token];
    for (const auto token : target) --left[token];
    return all(n, [&](auto i) { return left[source[i]] == 0 && (i == 0 || target[i - 1] <= target[i]); });
  }
  std::map<std::int32_t, std::int32_t> value_of;  // recall
  for (std::size_t i = 0; i + 1 < n; i += 2) value_of[source[i]] = source[i + 1];
  return n % 2 == 1 && value_of.size() == n / 2 &&
         all(1, [&](auto) { return target[0] == value_of.at(source[n - 1]); });
}

TEST(Task, ExamplesSatisfyTheirDefinition) {
  for (const auto& name : Task::names()) {
    const Task task(name, symbols);
    std::set<std::int64_t> lengths;
    for (std::uint64_t seed = 0; seed < 500; ++seed) {
      const TaskExample example = example_at(task, {.seed = seed}, symbols).example;
      EXPECT_TRUE(is_right(name, example.source, example.target)) << name << ", seed " << seed;
      const auto length = std::int64_t(name == "recall" ? example.source.size() / 2 : example.source.size());
      lengths.insert(length);
      EXPECT_EQ(std::int64_t(example.source.size()), task.source_length(length));
      EXPECT_EQ(std::int64_t(example.target.size()), task.target_length(length));
      for (const auto& part : {example.source, example.target})
        for (const auto token : part) {
          EXPECT_GE(token, Task::first_symbol);
          EXPECT_LT(token, task.num_tokens());
        }
    }
    EXPECT_EQ(std::int64_t(lengths.size()), symbols) << name;
  }
}

TEST(Task, LengthsAndSymbolsAreUniform) {
  constexpr int draws = 16000;
  for (const auto& name : Task::names()) {
    const Task task(name, 16);
    std::vector<int> lengths(17), firsts(16), asked(4);
    for (int i = 0; i < draws; ++i) {
      const Tokens source = example_at(task, {.seed = 1, .step = i / 16, .row = i % 16}, 16).example.source;
      ++lengths[name == "recall" ? source.size() / 2 : source.size()];
      ++firsts[std::size_t(source[0] - Task::first_symbol)];
      if (name == "recall" && source.size() == 9)
        ++asked[std::size_t(std::find(source.begin(), source.end(), source.back()) - source.begin()) / 2];
    }
    EXPECT_EQ(lengths[0], 0);
    // 1000 expected in each of 16 cells, standard deviation 31: five of them.
    for (std::size_t i = 0; i < 16; ++i) {
      EXPECT_NEAR(lengths[i + 1], draws / 16.0, 155) << name << ", length " << i + 1;
      EXPECT_NEAR(firsts[i], draws / 16.0, 155) << name << ", symbol " << i;
    }
    for (const int count : asked) EXPECT_NEAR(count, name == "recall" ? 250 : 0, 80);
  }
}

TEST(Task, ExamplesAreFunctionsOfTheirPlace) {
  const Task task("copy", 64);
  const auto source = [&](const TaskPlace& place) { return task_example(task, place, 24, 24, {}).example.source; };
  std::set<Tokens> seen;
  std::size_t count = 0;
  for (const std::uint64_t seed : {0, 1})
    for (const auto stream : {TaskStream::training, TaskStream::validation, TaskStream::evaluation})
      for (std::int64_t step = 0; step < 5; ++step)
        for (std::int64_t micro = 0; micro < 3; ++micro)
          for (std::int64_t row = 0; row < 8; ++row, ++count) {
            const TaskPlace place{seed, stream, step, micro, row};
            EXPECT_EQ(source(place), source(place));
            seen.insert(source(place));
          }
  EXPECT_EQ(seen.size(), count);  // 24 symbols of 64: no two alike, so no stream is another one shifted
}

TEST(Task, RowsAreSourceSeparatorTargetEnd) {
  const TaskRows rows{.encoder_decoder = false, .slots = 8, .stride = 1};
  const Batch batch = to_batch({{{{5, 6, 7}, {8, 9}}, 0}, {{{5}, {6}}, 4}}, rows);
  EXPECT_EQ(batch.inputs.to_vector(), (std::vector<double>{5, 6, 7, 1, 8, 9, 0, 0, 0, 0, 0, 0, 5, 1, 6, 0}));
  EXPECT_EQ(batch.mask.to_vector(), (std::vector<double>{1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0, 1, 1, 1, 0}));
  EXPECT_EQ(batch.counted.to_vector(), (std::vector<double>{0, 0, 0, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 1, 1, 0}));
  std::vector<double> counted_targets;
  for (std::int64_t i = 0; i < 16; ++i)
    if (batch.counted.data<bool>()[i]) counted_targets.push_back(batch.targets.data<std::int32_t>()[i]);
  EXPECT_EQ(counted_targets, (std::vector<double>{8, 9, 0, 6, 0}));
  EXPECT_THROW(to_batch({{{{5, 6, 7}, {8, 9}}, 3}}, rows), Error);
  const Batch narrow = to_batch({{{{5, 6, 7}, {8, 9}}, 0}, {{{5}, {6}}, 0}}, {});
  EXPECT_EQ(narrow.inputs.to_vector(), (std::vector<double>{5, 6, 7, 1, 8, 9, 5, 1, 6, 0, 0, 0}));
}

TEST(Task, AnEncoderReadsTheSourceAndADecoderTheTarget) {
  const Batch batch = to_batch({{{{5, 6, 7}, {8, 9}}, 0}, {{{5}, {6}}, 0}}, {.encoder_decoder = true});
  EXPECT_EQ(batch.source.ids.to_vector(), (std::vector<double>{5, 6, 7, 5, 0, 0}));
  EXPECT_EQ(batch.source.mask.to_vector(), (std::vector<double>{1, 1, 1, 1, 0, 0}));
  EXPECT_EQ(batch.inputs.to_vector(), (std::vector<double>{1, 8, 9, 1, 6, 0}));
  EXPECT_EQ(batch.targets.to_vector(), (std::vector<double>{8, 9, 0, 6, 0, 0}));
  EXPECT_EQ(batch.counted.to_vector(), (std::vector<double>{1, 1, 1, 1, 1, 0}));
  EXPECT_EQ(batch.mask.to_vector(), batch.counted.to_vector());
  const Batch shifted = to_batch({{{{5, 6}, {8}}, 4}}, {.encoder_decoder = true, .slots = 8, .stride = 4});
  EXPECT_EQ(shifted.source.ids.to_vector(), (std::vector<double>{0, 0, 0, 0, 5, 6, 0, 0}));
  EXPECT_EQ(shifted.inputs.to_vector(), (std::vector<double>{0, 0, 0, 0, 1, 8, 0, 0}));
  EXPECT_EQ(shifted.counted.to_vector(), (std::vector<double>{0, 0, 0, 0, 1, 1, 0, 0}));
}

TEST(Task, ShiftedExamplesStandAnywhereInTheRow) {
  const Task task("copy", 4);
  std::set<std::int64_t> offsets, buckets;
  for (std::int64_t row = 0; row < 400; ++row) {
    EXPECT_EQ(example_at(task, {.row = row}, 3, {.slots = 12}).offset, 0);
    const PlacedExample placed = example_at(task, {.row = row}, 3, {.slots = 12, .stride = 1}),
                        aligned = example_at(task, {.row = row}, 3, {.slots = 12, .stride = 4});
    offsets.insert(placed.offset);
    buckets.insert(aligned.offset);
    EXPECT_LE(placed.offset + task.input_length(std::int64_t(placed.example.source.size()), false), 12);
    // Where it stands changes nothing of what it is.
    EXPECT_EQ(placed.example.source, example_at(task, {.row = row}, 3).example.source);
  }
  EXPECT_EQ(offsets.size(), 10u);
  EXPECT_EQ(buckets, (std::set<std::int64_t>{0, 4, 8}));
}

TEST(Task, TokensHaveCharactersInTheirOrder) {
  for (const auto& name : Task::names())
    for (const std::int64_t count : {2, 10, 40, 64, 200}) {
      const Task task(name, count);
      const Tokenizer tokenizer = task.tokenizer();
      ASSERT_EQ(tokenizer.size(), task.num_tokens());
      EXPECT_EQ(tokenizer.piece(Task::end), ".");
      EXPECT_EQ(tokenizer.piece(Task::separator), "/");
      EXPECT_EQ(tokenizer.piece(Task::first_symbol), "0");
    }
  EXPECT_EQ(Task("sort", 8).alphabet(), "0-7");
  EXPECT_EQ(Task("sort", 11).alphabet(), "0-9, A");
  EXPECT_EQ(Task("add-one", 64).alphabet(), "0-9, A-Z, a-z, À-Á");
  EXPECT_EQ(Task("recall", 10).alphabet(), "0-9, A-J");
}

TEST(Task, ReadsSources) {
  const Task sort("sort", 10), recall("recall", 3);
  EXPECT_EQ(sort.parse_source("907", "prompt"), (Tokens{11, 2, 9}));
  EXPECT_EQ(sort.parse_source("907/", "prompt"), (Tokens{11, 2, 9}));
  EXPECT_EQ(sort.answer({11, 2, 9}, "prompt"), (Tokens{2, 9, 11}));
  EXPECT_EQ(recall.answer(recall.parse_source("03151/", "prompt"), "prompt"), (Tokens{7}));
  const auto refusal = [&](const Task& task, const std::string& text) {
    return message_of([&] { task.answer(task.parse_source(text, "prompt"), "prompt"); });
  };
  expect_says(refusal(sort, "12a4"), "prompt: 'a' (U+0061) is no symbol of task sort; its symbols are 0-9");
  expect_says(refusal(sort, "1/2"), "prompt: '/' (U+002F) is no symbol");
  expect_says(refusal(sort, "12."), "'.' (U+002E) is no symbol");
  expect_says(refusal(sort, "1\xFF"), "not UTF-8");
  expect_says(refusal(sort, ""), "wants a source of symbols 0-9");
  expect_says(refusal(sort, "/"), "wants a source of symbols 0-9");
  for (const char* wrong : {"0", "03", "0301", "010", "03152", "33152", "03040"})
    expect_says(refusal(recall, wrong), "recall wants pairs of a key and a value, then one of these keys, such as 030");
  EXPECT_EQ(refusal(recall, "030"), "");
  EXPECT_EQ(refusal(recall, "03151"), "");
}

TEST(Task, RefusesWhatIsNoTask) {
  expect_says(message_of([] { Task("srot", 10); }), "there is no task \"srot\"; did you mean sort?");
  expect_says(message_of([] { Task("sort", 1); }), "task_symbols 1 must be 2 to 200");
  expect_says(message_of([] { Task("sort", 201); }), "task_symbols 201");
  Draws draws({1, 0}, 0);
  EXPECT_THROW(Task("recall", 4).draw(draws, 5), Error);
  EXPECT_THROW(Task("copy", 4).draw(draws, 0), Error);
}

}  // namespace
}  // namespace sinkhorn
