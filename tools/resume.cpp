#include "tools/resume.h"

#include <array>
#include <filesystem>

#include "autograd/error.h"
#include "models/run_folder.h"

namespace sinkhorn {
namespace {

/// Options that a resumed run may be given anew: they change no step that was already made, nor how the next is made.
constexpr std::array<std::string_view, 19> free_options = {"preset",         "data",          "out",
                                                           "resume",         "override",      "device",
                                                           "threads",        "steps",         "eval_every",
                                                           "eval_batches",   "keep",          "log_every",
                                                           "sample_prompt",  "sample_length", "sample_temperature",
                                                           "sample_top_k",   "sample_top_p",  "checkpoint_every",
                                                           "target_val_loss"};

/// The option of the model that no parameter depends on. The next steps round and draw otherwise, so it takes
/// --override, as options of training do.
constexpr std::string_view free_of_parameters = "head_groups";

bool is_free(std::string_view name) {
  return std::find(free_options.begin(), free_options.end(), name) != free_options.end();
}

/// Whether the user chose the value: by a flag, a file, or a preset named by either.
bool was_set(const Settings& settings, const std::string& name) {
  const auto origin = [&](const std::string& option) {
    const auto found = settings.origins.find(option);
    return found == settings.origins.end() ? std::string("default") : found->second;
  };
  const std::string from = origin(name);
  if (from.starts_with("preset ")) return origin("preset") != "default";
  return from != "default" && from != "seq_len" && from != "task_length";
}

std::string joined(const std::vector<std::string>& parts) {
  std::string text;
  for (const auto& part : parts) text += (text.empty() ? "" : ", ") + part;
  return text;
}

std::string numbered(const std::string& base, int n) { return n == 1 ? base : base + "-" + std::to_string(n); }

}  // namespace

Settings settings_to_resume(const Settings& given, const RunRecord& record, const std::string& checkpoint) {
  Settings wanted = given, result;
  result.model = record.model;
  result.train = record.train;
  std::vector<std::string> model_differences, train_differences;
  for (const bool of_model : {true, false}) {
    const Fields ours = of_model ? wanted.model_fields() : wanted.train_fields();
    const Fields theirs = of_model ? result.model_fields() : result.train_fields();
    for (std::size_t i = 0; i < ours.size(); ++i) {
      const std::string& name = ours[i].name;
      result.origins[name] = "checkpoint";
      const Value here = value_of(ours[i]), there = value_of(theirs[i]);
      if (here == there || !was_set(given, name)) continue;
      const bool is_fixed = of_model && name != free_of_parameters;
      if (is_fixed || (!is_free(name) && !given.train.override_settings))
        (is_fixed ? model_differences : train_differences)
            .push_back(name + ": " + to_text(here) + " here, " + to_text(there) + " there");
      assign(theirs[i], here, flag_of(name));
      result.origins[name] = given.origins.at(name);
    }
  }
  if (!model_differences.empty())
    fail<UsageError>("train: the model differs from that of ", checkpoint, ": ", joined(model_differences),
                     "; leave these out, or start a new run with another --out");
  if (!train_differences.empty())
    fail<UsageError>("train: settings differ from those of ", checkpoint, ": ", joined(train_differences),
                     "; leave these out, or add --override to go on with the new values");
  for (const auto& [to, from] :
       {std::pair(&result.train.device, &given.train.device), {&result.train.out, &given.train.out}})
    *to = *from;
  result.train.threads = given.train.threads;
  validate(result);
  return result;
}

bool holds_run(const std::string& folder) {
  std::error_code error;
  for (std::filesystem::directory_iterator entry(folder, error), end; !error && entry != end; entry.increment(error)) {
    const std::string name = entry->path().filename().string();
    if (name == RunFolder::best_name || (name.starts_with("step-") && name.ends_with(".safetensors"))) return true;
  }
  return false;
}

std::string fresh_folder(const std::string& base) {
  int n = 1;
  while (holds_run(numbered(base, n))) ++n;
  return numbered(base, n);
}

std::string latest_folder(const std::string& base) {
  int n = 1;
  while (holds_run(numbered(base, n + 1))) ++n;
  return numbered(base, n);
}

}  // namespace sinkhorn
