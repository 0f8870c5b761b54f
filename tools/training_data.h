// Where the batches of a training run come from: a text, or a synthetic task.
#pragma once
#include <iosfwd>
#include <memory>

#include "tools/dataset.h"
#include "tools/settings.h"
#include "tools/task_report.h"

namespace sinkhorn {

/// What a run asks of its data. Batches are functions of the settings and the arguments alone.
class TrainingData {
 public:
  virtual ~TrainingData() = default;

  virtual const Tokenizer& tokenizer() const = 0;
  virtual std::string name() const = 0;
  /// Of the content, so that a resumed run can tell that its data changed.
  virtual std::string fingerprint() const = 0;
  virtual std::int64_t bytes() const = 0;
  /// Lines of the banner: what, and text.
  virtual std::vector<std::pair<std::string, std::string>> banner() const = 0;

  virtual Batch training_batch(std::int64_t step, std::int64_t micro_step) const = 0;
  /// Batch `index` of an evaluation, the same at every one, and of data that training never sees.
  virtual Batch validation_batch(std::int64_t index) const = 0;
  virtual double bits_per_character(double nats_per_token) const = 0;
  /// What other programs need for the same, in bits per character.
  virtual std::vector<CompressedSize> compressed() const { return {}; }
  /// Of a text, how many characters it has.
  virtual std::int64_t characters() const { return 0; }
  /// A task's scores at the training length and at twice that; of a text, none.
  virtual std::vector<TaskScore> scores(const SequenceModel&) const { return {}; }

  /// What the model makes of it at the end of a run.
  virtual void show_sample(const SequenceModel& model, std::ostream& out) const = 0;
  /// Flags of `sinkhorn generate` to try next.
  virtual std::vector<std::string> next_flags() const = 0;
};

/// The text or task that the settings name. Throws DataError for a text that cannot be used, or that has no token for
/// the sample's prompt.
std::unique_ptr<TrainingData> open_training_data(const Settings& settings);

}  // namespace sinkhorn
