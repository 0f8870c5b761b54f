#include "tools/checkpoint.h"

#include <cstring>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "build_info.h"
#include "models/run_folder.h"
#include "models/weights.h"
#include "tools/task.h"

namespace sinkhorn {
namespace {

constexpr const char* format_name = "sinkhorn checkpoint";
constexpr const char* format_version = "1";
constexpr const char* parameters = "model.";
constexpr const char* first_moments = "first_moment.";
constexpr const char* second_moments = "second_moment.";

const std::string& entry(const safetensors::File& file, const std::string& key) {
  const auto found = file.metadata.find(key);
  if (found == file.metadata.end()) fail<DataError>(file.path, ": the checkpoint's metadata has no ", key);
  return found->second;
}

/// A member of a JSON object, of the type asked for.
template <class T>
T member(const nlohmann::json& object, const char* name, const safetensors::File& file) {
  try {
    return object.at(name).get<T>();
  } catch (const nlohmann::json::exception&) {
    fail<DataError>(file.path, ": the checkpoint's metadata has no usable \"", name, "\"");
  }
}

}  // namespace

safetensors::Metadata to_metadata(const RunRecord& record, std::uint64_t rng_key, const std::string& device) {
  RunRecord r = record;
  // Where and how the process ran is no part of the run: resumed or not, the checkpoint is the same.
  const TrainConfig defaults;
  r.train.out = defaults.out;
  r.train.resume = r.train.override_settings = false;
  r.train.device = defaults.device;
  r.train.threads = defaults.threads;
  const nlohmann::json data = {{"name", r.data_name},
                               {"bytes", r.data_bytes},
                               {"fingerprint", r.data_fingerprint},
                               {"cursor", r.step}};  // batches are a function of seed and step
  nlohmann::json best;
  if (r.best_step > 0) best = {{"step", r.best_step}, {"val_loss", r.best_val_loss}};
  return {{"format", format_name},
          {"format_version", format_version},
          {"model", to_json(r.model)},
          {"train", fields_to_json(fields(r.train))},
          {"tokenizer", r.tokenizer.to_json()},
          {"step", std::to_string(r.step)},
          {"rng_key", std::to_string(rng_key)},
          {"data", data.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace)},
          {"best", best.dump()},
          {"device", device},
          {"build", std::string(build_info::version) + ", " + std::string(build_info::compiler)}};
}

bool is_checkpoint(const safetensors::File& file) {
  const auto format = file.metadata.find("format");
  return format != file.metadata.end() && format->second == format_name;
}

RunRecord read_record(const safetensors::File& file) {
  if (!is_checkpoint(file)) fail<DataError>(file.path, ": is a safetensors file, but no checkpoint of sinkhorn train");
  if (const std::string version = entry(file, "format_version"); version != format_version)
    fail<DataError>(file.path, ": has checkpoint format ", version, ", this program reads ", format_version,
                    "; use the program that wrote it");
  const auto where = [&](const char* part) { return file.path + ": its " + part; };
  RunRecord r;
  r.model = model_config_from_json(entry(file, "model"), where("model config"));
  fields_from_json(fields(r.train), entry(file, "train"), where("train config"));
  try {
    validate(r.model);
    if (r.model.num_tokens < 1 || r.model.max_seq_len < 1) fail<UsageError>("it describes no language model");
  } catch (const UsageError& error) {
    fail<DataError>(where("model config"), ": ", error.what());
  }
  r.tokenizer = Tokenizer::from_json(entry(file, "tokenizer"), where("tokenizer"));
  if (r.tokenizer.size() != r.model.num_tokens)
    fail<DataError>(file.path, ": its tokenizer has ", r.tokenizer.size(), " tokens, its model ", r.model.num_tokens);
  if (r.train.has_task() && r.tokenizer != Task(r.train.task, r.train.task_symbols).tokenizer())
    fail<DataError>(file.path, ": its tokenizer is not that of its task ", r.train.task);
  const auto step = nlohmann::json::parse(entry(file, "step"), nullptr, false);
  const auto data = nlohmann::json::parse(entry(file, "data"), nullptr, false);
  const auto best = nlohmann::json::parse(entry(file, "best"), nullptr, false);
  if (!step.is_number_unsigned()) fail<DataError>(file.path, ": its step is no number");
  r.step = step.get<std::int64_t>();
  r.data_name = member<std::string>(data, "name", file);
  r.data_fingerprint = member<std::string>(data, "fingerprint", file);
  r.data_bytes = member<std::int64_t>(data, "bytes", file);
  if (!best.is_null()) {
    r.best_step = member<std::int64_t>(best, "step", file);
    r.best_val_loss = member<double>(best, "val_loss", file);
  }
  // A forged config allocates nothing that the file does not hold, at two bytes a number or more.
  if (least_parameters(r.model, r.train.encoder_decoder) * 2 > double(file.data.size()))
    fail<DataError>(file.path, ": the model of its config is larger than the file");
  return r;
}

std::vector<safetensors::Item> checkpoint_items(const Trainer& trainer) {
  const FlatParameters& all = trainer.parameters();
  std::vector<safetensors::Item> items;
  for (const auto& [prefix, flat] : {std::pair(parameters, &all.values), std::pair(first_moments, &all.first_moment),
                                     std::pair(second_moments, &all.second_moment)})
    for (const FlatParameters::Entry& e : all.entries())
      items.push_back(to_item(prefix + e.name, all.slice_of(*flat, e)));
  return items;
}

std::vector<safetensors::Item> weight_items(SinkhornTransformerLM& model) {
  std::vector<safetensors::Item> items;
  for_each_parameter(model, [&](const std::string& name, const Parameter& parameter) {
    items.push_back(to_item(parameters + name, parameter.value));
  });
  return items;
}

void load_checkpoint(const safetensors::File& file, const RunRecord& record, Trainer& trainer) {
  load_parameters(file, parameters, trainer.model());
  FlatParameters& all = trainer.parameters();
  for (const auto& [prefix, flat] :
       {std::pair(first_moments, &all.first_moment), std::pair(second_moments, &all.second_moment)})
    for (const FlatParameters::Entry& e : all.entries()) {
      Parameter moment{all.slice_of(*flat, e)};
      load_parameter(file, prefix + e.name, moment);
    }
  trainer.set_steps_done(record.step);
}

TrainedModel load_trained_model(const std::string& file_or_folder) {
  namespace fs = std::filesystem;
  fs::path path = file_or_folder;
  std::error_code ignored;
  safetensors::File file;
  if (fs::is_directory(path, ignored) && !fs::exists(path / RunFolder::best_name, ignored)) {
    NewestCheckpoint newest = newest_checkpoint(path);
    if (!newest.checkpoint)
      fail<DataError>(newest.skipped.empty() ? file_or_folder + ": holds no checkpoint; train one with sinkhorn train"
                                             : newest.skipped.front());
    file = std::move(newest.checkpoint->file);
  } else {
    if (fs::is_directory(path, ignored)) path /= RunFolder::best_name;
    file = read_checkpoint(path);
  }
  TrainedModel trained{read_record(file), file.path, nullptr};
  trained.model = std::make_unique<SequenceModel>(trained.record.model, trained.record.train.encoder_decoder);
  load_parameters(file, parameters, *trained.model);
  return trained;
}

void require_predictor(const TrainedModel& trained, const std::string& command) {
  const ModelConfig& model = trained.record.model;
  const auto refuse = [&](const char* reason) {
    fail<UsageError>(command, ": ", trained.path, " is no model that predicts each next token: ", reason);
  };
  if (trained.model->has_encoder()) return;
  if (!model.causal) refuse("it is not causal, so every position sees the tokens after it");
  if (model.return_embeddings) refuse("it returns embeddings, not logits");
  if (model.receives_context) refuse("it reads the context of an encoder, which is not in the file");
}

}  // namespace sinkhorn
