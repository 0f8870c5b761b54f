// What a checkpoint says beside its tensors, and the trained model that one such file holds.
#pragma once
#include <limits>
#include <memory>
#include <optional>
#include <string>

#include "models/safetensors.h"
#include "tools/settings.h"
#include "tools/tokenizer.h"
#include "tools/trainer.h"

namespace sinkhorn {

/// Everything of a run that its tensors do not say.
struct RunRecord {
  ModelConfig model;
  TrainConfig train;
  Tokenizer tokenizer;
  std::int64_t step = 0;
  std::string data_name, data_fingerprint;
  std::int64_t data_bytes = 0;
  double best_val_loss = std::numeric_limits<double>::infinity();
  std::int64_t best_step = 0;
};

/// The record as a checkpoint's metadata. `device` and the build are told for people; nothing reads them back.
safetensors::Metadata to_metadata(const RunRecord& record, std::uint64_t rng_key, const std::string& device);
/// Whether a file says that it is a checkpoint of this program.
bool is_checkpoint(const safetensors::File& file);
/// Throws DataError for a file that is no checkpoint of this program, of another format, or with a wrong record.
RunRecord read_record(const safetensors::File& file);

/// Parameters ("model.NAME") and both moments. The items point into the trainer.
std::vector<safetensors::Item> checkpoint_items(const Trainer& trainer);
/// Parameters alone, of a model that no run of ours has trained. The items point into the model.
std::vector<safetensors::Item> weight_items(SinkhornTransformerLM& model);
/// Parameters, moments and step count, to the bit. Throws DataError naming the first tensor that does not fit.
void load_checkpoint(const safetensors::File& file, const RunRecord& record, Trainer& trainer);

struct TrainedModel {
  RunRecord record;
  std::string path;  // of the file
  std::unique_ptr<SequenceModel> model;
};
/// Reads a file, or from a run's folder the best checkpoint, or where there is none the newest good one. Throws
/// DataError.
TrainedModel load_trained_model(const std::string& file_or_folder);
/// Throws UsageError where a language model (not of an encoder-decoder) cannot predict each next token by itself, as
/// imported ones may be.
void require_predictor(const TrainedModel& trained, const std::string& command);

}  // namespace sinkhorn
