#include "tools/settings.h"

#include <toml++/toml.h>

#include <algorithm>
#include <sstream>

#include "autograd/error.h"
#include "tools/read_file.h"
#include "tools/sequence_model.h"
#include "tools/task.h"

namespace sinkhorn {
namespace {

Value from_toml(const toml::node& node) {
  if (auto* flag = node.as_boolean()) return flag->get();
  if (auto* whole = node.as_integer()) return whole->get();
  if (auto* number = node.as_floating_point()) return number->get();
  if (auto* text = node.as_string()) return text->get();
  if (auto* list = node.as_array(); list && (list->empty() || list->is_homogeneous<std::int64_t>())) {
    std::vector<std::int64_t> numbers;
    for (const auto& entry : *list) numbers.push_back(entry.as_integer()->get());
    return numbers;
  }
  // Tables, dates and mixed lists fit no option; the message shows what they are.
  return text_of("a TOML ", node.type());
}

std::string config_text(const std::string& path) {
  try {
    return read_file(path, "--config");
  } catch (const DataError& error) {  // to the user, a wrong path after a flag is a wrong flag
    throw UsageError(error.what());
  }
}

bool belongs_to_model(const std::string& name) {
  ModelConfig model;
  return find_field(fields(model), name) != nullptr;
}

}  // namespace

Fields fields(TrainConfig& c) {
  std::vector<std::string> names;
  for (const auto& preset : presets()) names.push_back(preset.name);
  std::vector<std::string> tasks = Task::names();
  tasks.insert(tasks.begin(), "none");
  const Accepts flag = anything(), text = anything();
  return {
      {"preset", &c.preset, one_of(names), "named set of options to start from"},
      {"data", &c.data, text, "text file, plain or .gz; - reads standard input; default the Jargon File"},
      {"task", &c.task, one_of(tasks), "synthetic task to learn in place of a text; its preset is the default"},
      {"task_length", &c.task_length, between(1, 1 << 20), "longest example in training; evaluated at twice that, too"},
      {"task_symbols", &c.task_symbols, between(2, Task::most_symbols), "different symbols of the task"},
      {"task_shift", &c.task_shift, flag,
       "start training examples at any bucket of the longest row, so that all positions are trained"},
      {"encoder_decoder", &c.encoder_decoder, flag,
       "read a task's source with an encoder, write its target with a decoder"},
      {"out", &c.out, text, "folder for logs and checkpoints; default runs/PRESET"},
      {"resume", &c.resume, flag, "continue from the newest checkpoint in the folder"},
      {"override", &c.override_settings, flag, "resume although training options differ from the checkpoint's"},
      {"device", &c.device, one_of({"auto", "cpu", "cuda"}), "where to compute"},
      {"precision", &c.precision, one_of({"f32", "tf32", "bf16"}),
       "of products and attention; parameters, residual stream and statistics stay f32 (tf32: on a GPU, else f32)"},
      {"threads", &c.threads, between(0, 1024), "threads of the CPU backend; 0 takes all cores"},
      {"seed", &c.seed, at_least(0), "the run is a function of the seed, for any number of threads"},
      {"vocabulary", &c.vocabulary, one_of({"char", "byte"}), "tokens are code points, or bytes"},
      {"steps", &c.steps, at_least(1), "optimizer steps"},
      {"batch_size", &c.batch_size, at_least(1), "sequences in a batch"},
      {"accumulate", &c.accumulate, at_least(1), "batches averaged into one step"},
      {"seq_len", &c.seq_len, at_least(1), "tokens in a sequence"},
      {"learning_rate", &c.learning_rate, above_to(0, 10), "highest learning rate"},
      {"min_learning_rate", &c.min_learning_rate, between(0, 10), "learning rate at the last step"},
      {"pkm_learning_rate", &c.pkm_learning_rate, above_to(0, 10),
       "highest learning rate of product-key memory values; falls as learning_rate does"},
      {"warmup_steps", &c.warmup_steps, at_least(0), "steps of linear warm-up; a cosine follows"},
      {"beta1", &c.beta1, from_below(0, 1), "AdamW: decay of the mean gradient"},
      {"beta2", &c.beta2, from_below(0, 1), "AdamW: decay of the mean square"},
      {"epsilon", &c.epsilon, above_to(0, 1), "AdamW: added to the root mean square"},
      {"weight_decay", &c.weight_decay, between(0, 1000), "decoupled decay; not of norms, biases and embeddings"},
      {"clip_norm", &c.clip_norm, between(0, 1e9), "largest gradient norm; 0 does not clip"},
      {"embedding_init_std", &c.embedding_init_std, above_to(0, 100), "standard deviation of new embeddings"},
      {"eval_every", &c.eval_every, at_least(1), "steps between evaluations"},
      {"eval_batches", &c.eval_batches, at_least(1), "batches of an evaluation"},
      {"target_val_loss", &c.target_val_loss, between(0, 1000),
       "stop at the first evaluation whose loss, in nats, is no higher; 0 makes all steps"},
      {"checkpoint_every", &c.checkpoint_every, at_least(1), "steps between checkpoints"},
      {"keep", &c.keep, at_least(2), "checkpoints kept besides the best"},
      {"log_every", &c.log_every, at_least(1), "steps between lines when the output is not a terminal"},
      {"sample_prompt", &c.sample_prompt, text, "text the sample continues; default a newline"},
      {"sample_length", &c.sample_length, at_least(0), "tokens of the sample at the end"},
      {"sample_temperature", &c.sample_temperature, between(0, 100), "0 takes the likeliest token"},
      {"sample_top_k", &c.sample_top_k, at_least(0), "draw among the k likeliest tokens; 0 among all"},
      {"sample_top_p", &c.sample_top_p, above_to(0, 1), "draw among the likeliest tokens of this total probability"},
  };
}

namespace {

/// A small model for a synthetic task, with the options in which tasks differ.
Preset task_preset(const std::string& name, const std::string& purpose, const std::string& model,
                   const std::string& train, int batch_size = 32) {
  return {name, purpose,
          R"(
[model]
causal = true
dim = 64
depth = 2
heads = 4
)" + model + R"([train]
task = ")" + name +
              R"("
batch_size = )" +
              std::to_string(batch_size) + R"(
min_learning_rate = 1e-4
warmup_steps = 50
weight_decay = 0.01
eval_every = 500
eval_batches = 2
checkpoint_every = 500
log_every = 100
)" + train};
}

}  // namespace

const std::vector<Preset>& presets() {
  static const std::vector<Preset> all = {
      {"cpu-small", "a character model of English prose in about 3 minutes on 2 cores", R"(
[model]
causal = true
dim = 128
depth = 4
heads = 4
bucket_size = 16
n_local_attn_heads = 2
[train]
steps = 3400
batch_size = 8
seq_len = 128
learning_rate = 2e-3
min_learning_rate = 2e-4
warmup_steps = 100
embedding_init_std = 0.02
eval_every = 340
eval_batches = 16
checkpoint_every = 500
log_every = 100
)"},
      // Seven batches of 64 x 256 are as many tokens as the last tenth of tinyshakespeare has.
      {"shakespeare", "tinyshakespeare to the 1.4697 nats of nanoGPT, on one GPU", R"(
[model]
causal = true
dim = 384
depth = 6
heads = 6
bucket_size = 64
n_local_attn_heads = 3
n_top_buckets = 2
attn_dropout = 0.2
attn_layer_dropout = 0.2
emb_dropout = 0.2
[train]
precision = "bf16"
steps = 1500
batch_size = 64
seq_len = 256
min_learning_rate = 1e-4
warmup_steps = 100
embedding_init_std = 0.02
target_val_loss = 1.4697
eval_every = 50
eval_batches = 7
checkpoint_every = 500
)"},
      {"enwik8", "a byte model of long sequences, for one GPU", R"(
[model]
causal = true
dim = 512
depth = 8
heads = 8
bucket_size = 128
n_local_attn_heads = 4
reversible = true
ff_chunks = 4
[train]
vocabulary = "byte"
precision = "bf16"
steps = 50000
batch_size = 8
seq_len = 4096
learning_rate = 5e-4
min_learning_rate = 5e-5
warmup_steps = 1000
embedding_init_std = 0.02
eval_every = 1000
eval_batches = 20
checkpoint_every = 1000
)"},
      // As deep and wide as the published example for 204,800 characters. Shorter rows (--seq-len) fit into less.
      {"long-204k", "204,800 characters of context in about 5 GiB, on one GPU", R"(
[model]
causal = true
num_tokens = 256
dim = 512
depth = 8
heads = 8
bucket_size = 128
emb_dim = 128
n_local_attn_heads = 4
n_top_buckets = 2
reversible = true
ff_chunks = 2
[train]
vocabulary = "byte"
precision = "bf16"
steps = 300
batch_size = 1
seq_len = 204800
learning_rate = 1e-3
min_learning_rate = 1e-4
warmup_steps = 30
embedding_init_std = 0.02
eval_every = 50
eval_batches = 1
checkpoint_every = 100
log_every = 10
)"},
      task_preset("copy", "task: say a sequence again", "bucket_size = 8\n",
                  "task_length = 16\nsteps = 1500\nlearning_rate = 2e-3\nembedding_init_std = 1.0\n"),
      task_preset("duplicate", "task: say a sequence twice", "bucket_size = 8\n",
                  "task_length = 16\nsteps = 2500\nlearning_rate = 2e-3\nembedding_init_std = 1.0\n"),
      task_preset("reverse", "task: say a sequence backwards", "bucket_size = 8\n",
                  "task_length = 16\nsteps = 1500\nlearning_rate = 2e-3\nembedding_init_std = 1.0\n"),
      task_preset("sort", "task: sort digits", "bucket_size = 16\n",
                  "task_length = 32\nsteps = 2500\nlearning_rate = 2e-3\nembedding_init_std = 0.02\n"),
      task_preset("add-one", "task: add one to each of 64 symbols; encoder and decoder", "bucket_size = 16\n",
                  "task_length = 64\ntask_symbols = 64\nencoder_decoder = true\n"
                  "steps = 1000\nlearning_rate = 3e-3\nembedding_init_std = 1.0\n"),
      // One symbol of an example counts, so that a batch must be large to say anything.
      task_preset("recall", "task: say the value that stood with a key", "bucket_size = 16\n",
                  "task_length = 4\ntask_symbols = 8\nsteps = 3000\nlearning_rate = 2e-3\nembedding_init_std = 0.02\n",
                  256),
      // A decoder reads 513 tokens, nine whole buckets of 57: with buckets of 128 only the longest examples would fill
      // a fifth one, too seldom to learn what belongs there.
      {"add-one-512", "task add-one at length 512, for one GPU", R"(
[model]
causal = true
dim = 256
depth = 2
heads = 4
bucket_size = 57
[train]
task = "add-one"
task_length = 512
task_symbols = 64
encoder_decoder = true
precision = "bf16"
steps = 8000
batch_size = 32
learning_rate = 5e-4
min_learning_rate = 1e-5
warmup_steps = 200
weight_decay = 0.01
embedding_init_std = 0.02
eval_every = 4000
eval_batches = 2
checkpoint_every = 4000
log_every = 250
)"},
      {"sort-256", "task sort at length 256, evaluated at 512, too, for one GPU", R"(
[model]
causal = true
dim = 256
depth = 3
heads = 8
bucket_size = 64
n_top_buckets = 4
[train]
task = "sort"
task_length = 256
task_shift = true
encoder_decoder = true
precision = "bf16"
steps = 8000
batch_size = 32
learning_rate = 5e-4
min_learning_rate = 1e-5
warmup_steps = 200
weight_decay = 0.01
embedding_init_std = 0.02
eval_every = 4000
eval_batches = 2
checkpoint_every = 4000
log_every = 250
)"},
  };
  return all;
}

Fields Settings::all_fields() {
  Fields all = model_fields();
  for (auto& field : train_fields()) all.push_back(field);
  return all;
}

void Settings::set(const std::string& name, const Value& value, const std::string& where, const std::string& origin) {
  const Fields all = all_fields();
  const Field* field = find_field(all, name);
  if (!field) fail<UsageError>(where, ": ", unknown_option(name, all));
  assign(*field, value, where);
  origins[name] = origin;
}

void Settings::read_toml(std::string_view text, const std::string& source) {
  const auto place = [&](const toml::source_region& region) {
    return source + ":" + std::to_string(region.begin.line);
  };
  toml::table file;
  try {
    file = toml::parse(text, source);
  } catch (const toml::parse_error& error) {
    std::string reason(error.description());
    std::replace(reason.begin(), reason.end(), '\n', ' ');
    fail<UsageError>(place(error.source()), ": ", reason);
  }
  for (const auto& [table_key, node] : file) {
    const std::string table(table_key.str()), where = place(table_key.source());
    if (table != "model" && table != "train") {
      if (!find_field(all_fields(), table)) {
        const std::string near = nearest(table, {"model", "train"});
        fail<UsageError>(where, ": unknown table [", table, "]", near.empty() ? "" : "; did you mean [" + near + "]?",
                         " (options stand in [model] and [train])");
      }
      fail<UsageError>(where, ": ", table, " belongs in the table [", belongs_to_model(table) ? "model" : "train", "]");
    }
    if (!node.is_table()) fail<UsageError>(where, ": ", table, " must be a table: [", table, "]");
    for (const auto& [key, value] : *node.as_table()) {
      const std::string name(key.str()), here = place(key.source());
      const Fields own = table == "model" ? model_fields() : train_fields();
      if (!find_field(own, name) && find_field(all_fields(), name))
        fail<UsageError>(here, ": ", name, " belongs in the table [", table == "model" ? "train" : "model", "]");
      set(name, from_toml(value), here, here);
    }
  }
}

void Settings::read_preset(const std::string& name) {
  set("preset", name, "preset", "default");
  for (const auto& preset : presets())
    if (preset.name == name) read_toml(preset.toml, name);
  for (auto& [option, origin] : origins) origin = option == "preset" ? "default" : "preset " + name;
}

void Settings::fit_task() {
  const TaskLengths lengths = task_lengths(*this);
  const auto chosen = origins.find("seq_len");
  if (chosen == origins.end() || chosen->second.starts_with("preset ")) {
    train.seq_len = train.task_shift ? lengths.evaluation : lengths.training;
    origins["seq_len"] = "task_length";
  }
  if (model.max_seq_len == 0) {
    model.max_seq_len = std::max(lengths.evaluation, train.seq_len);
    origins["max_seq_len"] = "task_length";
  }
}

TaskLengths task_lengths(const Settings& settings) {
  const TrainConfig& train = settings.train;
  const Task task(train.task, train.task_symbols);
  const std::int64_t multiple = settings.model.length_multiple();
  const auto slots = [&](std::int64_t length) {
    return (task.input_length(length, train.encoder_decoder) + multiple - 1) / multiple * multiple;
  };
  return {slots(train.task_length), slots(2 * train.task_length)};
}

Settings read_config(const std::string& path) {
  Settings settings;
  settings.read_toml(config_text(path), path);
  return settings;
}

Settings resolve(const std::string& config_path, const Flags& flags, const std::string& default_preset) {
  const std::string text = config_path.empty() ? "" : config_text(config_path);
  // The preset is the lowest layer although the file or a flag names it: find it first.
  std::string preset = default_preset;
  Settings upper;
  if (!config_path.empty()) upper.read_toml(text, config_path);
  for (const auto& [name, value] : flags)
    if (name == "preset" || name == "task") upper.set(name, value, flag_of(name), "flag");
  if (upper.train.has_task()) preset = upper.train.task;  // the task's own
  if (upper.origins.count("preset")) preset = upper.train.preset;

  Settings settings;
  settings.read_preset(preset);
  if (!config_path.empty()) settings.read_toml(text, config_path);
  for (const auto& [name, value] : flags) {
    const Fields all = settings.all_fields();
    const Field* field = find_field(all, name);
    if (!field) fail<UsageError>(flag_of(name), ": ", unknown_option(name, all));
    settings.set(name, parse_value(*field, value, flag_of(name)), flag_of(name), "flag " + flag_of(name));
  }
  if (settings.train.out.empty()) settings.train.out = "runs/" + preset, settings.origins["out"] = "preset " + preset;
  if (settings.train.has_task()) settings.fit_task();
  if (settings.model.max_seq_len == 0) {
    settings.model.max_seq_len = settings.train.seq_len;
    settings.origins["max_seq_len"] = "seq_len";
  }
  validate(settings);
  return settings;
}

void validate_task(const Settings& settings);

void validate(const Settings& given) {
  Settings settings = given;
  const ModelConfig& model = settings.model;
  const TrainConfig& train = settings.train;
  validate(model);
  check_ranges(settings.train_fields(), "train");
  const auto refuse = [](const auto&... parts) { fail<UsageError>("train: ", parts...); };
  if (!model.causal) refuse("a language model is trained to predict the next token: set causal true");
  if (model.receives_context) refuse("there is no encoder whose context receives_context could take; set it false");
  if (model.return_embeddings) refuse("training needs logits: set return_embeddings false");
  if (const std::int64_t multiple = model.length_multiple(); train.seq_len % multiple != 0)
    refuse("seq_len ", train.seq_len, " is not a multiple of bucket_size ", multiple, "; the next one is ",
           (train.seq_len / multiple + 1) * multiple);
  if (train.has_task()) validate_task(settings);
  if (train.encoder_decoder && !train.has_task())
    refuse("a text has no source that an encoder could read; set encoder_decoder false, or choose a task");
  if (train.seq_len > model.max_length())
    refuse("seq_len ", train.seq_len, " is longer than max_seq_len ", model.max_seq_len,
           "; raise max_seq_len or leave it out");
  if (train.batch_size > 2147483647 / (train.seq_len + 1))
    refuse("batch_size ", train.batch_size, " x seq_len ", train.seq_len,
           " is more than 2^31 tokens; lower one of them, ", "and raise accumulate instead");
  if (train.min_learning_rate > train.learning_rate)
    refuse("min_learning_rate ", to_text(train.min_learning_rate), " is above learning_rate ",
           to_text(train.learning_rate));
}

void validate_task(const Settings& settings) {
  const TrainConfig& train = settings.train;
  const Task task(train.task, train.task_symbols);
  const auto refuse = [&](const auto&... parts) { fail<UsageError>("train: task ", train.task, ": ", parts...); };
  if (!train.data.empty()) refuse("the task makes its own data; leave out data ", train.data, ", or the task");
  if (train.vocabulary != "char") refuse("its symbols are characters; leave vocabulary out");
  if (!train.sample_prompt.empty()) refuse("the samples are examples of the task; leave sample_prompt out");
  if (task.longest() > 0 && 2 * train.task_length > task.longest())
    refuse("keys are distinct, so evaluation at twice task_length ", train.task_length, " needs task_symbols of ",
           2 * train.task_length, " or more, not ", train.task_symbols);
  if (train.encoder_decoder) {
    ModelConfig model = settings.model;
    model.num_tokens = task.num_tokens();
    validate(encoder_and_decoder(model));
  }
  const TaskLengths lengths = task_lengths(settings);
  if (train.seq_len < lengths.training)
    refuse("examples of task_length ", train.task_length, " take seq_len ", lengths.training, ", not ", train.seq_len,
           "; leave seq_len out");
  if (settings.model.max_length() < lengths.evaluation)
    refuse("it is evaluated at twice task_length ", train.task_length, ", which takes max_seq_len ", lengths.evaluation,
           ", not ", settings.model.max_seq_len, "; raise it or leave it out");
}

std::string to_toml(Settings settings) {
  std::ostringstream file;
  for (const char* table : {"model", "train"}) {
    file << (table == std::string("model") ? "" : "\n") << "[" << table << "]\n";
    for (const auto& field : table == std::string("model") ? settings.model_fields() : settings.train_fields()) {
      const Value value = value_of(field);
      const bool none = std::holds_alternative<std::monostate>(value);
      const auto origin = settings.origins.find(field.name);
      // An option that is not set has no TOML value: its line is a comment. So is an empty choice's.
      const std::string line = (none ? "# " : "") + field.name + " = " + to_text(value);
      file << line << std::string(line.size() < 34 ? 34 - line.size() : 1, ' ') << "# "
           << (origin == settings.origins.end() ? "default" : origin->second) << "\n";
    }
  }
  return file.str();
}

std::string options_markdown() {
  Settings settings;
  std::ostringstream page;
  page << "| option | flag | default | accepts | meaning |\n|---|---|---|---|---|\n";
  for (const auto& field : settings.all_fields())
    page << "| " << field.name << " | `" << flag_of(field.name) << "` | " << to_text(value_of(field)) << " | "
         << expectation(field) << " | " << field.help << " |\n";
  return page.str();
}

std::string flag_of(const std::string& name) {
  std::string flag = "--" + name;
  std::replace(flag.begin(), flag.end(), '_', '-');
  return flag;
}

}  // namespace sinkhorn
