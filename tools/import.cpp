#include "tools/import.h"

#include <fmt/format.h>

#include <algorithm>
#include <filesystem>
#include <map>
#include <ostream>

#include "models/corrected_defects.h"
#include "models/published.h"
#include "models/run_folder.h"
#include "models/weights.h"
#include "tools/checkpoint.h"
#include "tools/hint.h"
#include "tools/progress.h"
#include "tools/read_file.h"

namespace sinkhorn {
namespace {

namespace fs = std::filesystem;
using published::Fate;
using published::Match;
using published::Matching;

std::string described(const safetensors::Entry& entry) {
  return text_of(safetensors::type_name(entry.type), " ", Shape(entry.shape));
}

/// "a, b, c and 4 more".
std::string first_few(const std::vector<std::string>& names) {
  constexpr std::size_t shown = 3;
  std::string text;
  for (std::size_t i = 0; i < std::min(names.size(), shown); ++i) text += (i ? ", " : "") + names[i];
  return names.size() > shown ? text + fmt::format(" and {} more", names.size() - shown) : text;
}

void line(std::ostream& out, const std::string& what, const std::string& text) {
  out << fmt::format("{:<11} {}\n", what, text);
}

/// The folder may be there, but with nothing of anybody's in it.
void require_free(const std::string& folder) {
  std::error_code error;
  const fs::file_status status = fs::status(folder, error);
  if (!fs::exists(status)) return;
  if (!fs::is_directory(status)) fail<DataError>("import: ", folder, " is a file; choose a folder that does not exist");
  for (fs::directory_iterator entry(folder, error), end; !error && entry != end; entry.increment(error))
    if (entry->path().filename() != RunFolder::lock_name)
      fail<DataError>("import: the folder ", folder, " exists and is not empty; choose another one");
}

/// The config's settings, with what the file says of the vocabulary's size.
Settings settings_for(const ImportOptions& options, const safetensors::File& file, const std::string& prefix) {
  Settings settings = read_config(options.config);
  ModelConfig& model = settings.model;
  const safetensors::Entry& table = file.require(prefix + "to_token_emb.weight");
  if (table.shape.size() != 2 || table.shape[0] < 1)
    fail<DataError>(file.path, ": tensor ", table.name, " is ", Shape(table.shape),
                    ", not a table of token embeddings");
  if (model.num_tokens == 0) model.num_tokens = table.shape[0];
  if (model.num_tokens != table.shape[0])
    fail<DataError>(file.path, ": has ", table.shape[0], " tokens, but num_tokens is ", model.num_tokens, " in ",
                    options.config, "; correct it, or leave it out");
  // The package has no such projection, so no file of its has one either unless the config says so.
  if (model.receives_context && !settings.origins.contains("context_kv_projection"))
    model.context_kv_projection = false;
  validate(model);
  if (model.least_parameters() * 2 > double(file.data.size()))
    fail<DataError>(file.path, ": is smaller than the model of ", options.config, "; is the config another one?");

  // What commands that read the checkpoint take from it beside the model.
  if (!settings.origins.contains("preset")) settings.train.preset = presets().front().name;
  if (!settings.origins.contains("seq_len")) settings.train.seq_len = model.max_length();
  return settings;
}

Tokenizer tokenizer_for(const ImportOptions& options, std::int64_t num_tokens) {
  if (!options.symbols.empty()) {
    const std::string where = "--symbols: " + options.symbols;
    std::string text = read_file(options.symbols, "--symbols");
    Tokenizer tokenizer = Tokenizer::symbols("", where);
    // Editors end a file with a newline that is nobody's token; only the count tells it from one that is.
    const auto characters = std::count_if(text.begin(), text.end(), [](char c) { return (c & 0xC0) != 0x80; });
    if (characters == num_tokens + 1 && text.ends_with('\n')) text.pop_back();
    tokenizer = Tokenizer::symbols(text, where);
    if (tokenizer.size() != num_tokens)
      fail<DataError>(where, " has ", tokenizer.size(), " characters, the model ", num_tokens,
                      " tokens; give one character for each token, in the order of their ids");
    return tokenizer;
  }
  if (num_tokens == 256) return Tokenizer::bytes();
  if (options.vocabulary == "byte")
    fail<UsageError>("import: --vocabulary byte has 256 tokens, the model ", num_tokens,
                     "; give --symbols FILE with the characters in the order of their ids");
  fail<UsageError>("import: the model has ", num_tokens,
                   " tokens, and the file does not say which characters they are; give --symbols FILE with the "
                   "characters in the order of their ids (tokens of several characters have no place there: such a "
                   "model can be imported with any distinct characters as stand-ins)");
}

std::string_view word(Fate fate) {
  switch (fate) {
    case Fate::used:
      return "used";
    case Fate::appended:
      return "appended";
    case Fate::tied:
      return "tied";
    case Fate::ignored:
      return "ignored";
    case Fate::unknown:
      return "left over";
  }
  fail("import: no such fate");
}

void report(const Matching& matching, std::ostream& out) {
  for (const Match& match : matching.tensors)
    line(out, std::string(word(match.fate)),
         match.entry->name + "  " + described(*match.entry) + (match.note.empty() ? "" : "  (" + match.note + ")"));
  for (const std::string& name : matching.missing) line(out, "missing", name);
  std::map<std::string_view, int> counts;
  for (const Match& match : matching.tensors) ++counts[word(match.fate)];
  counts["missing"] = int(matching.missing.size());
  std::string total;
  for (const char* fate : {"used", "appended", "tied", "ignored", "left over", "missing"})
    if (counts[fate] > 0) total += fmt::format("{}{} {}", total.empty() ? "" : ", ", counts[fate], fate);
  line(out, "tensors", total);
}

/// Throws the first thing that keeps the file from being this model.
void require_fit(const Matching& matching, const safetensors::File& file, const ModelConfig& model) {
  if (!matching.missing.empty()) {
    const bool projection = model.receives_context && model.context_kv_projection;
    fail<DataError>(file.path, ": lacks ", matching.missing.size(),
                    " of the model's tensors: ", first_few(matching.missing), "; is the config another one?",
                    projection ? " (the package's cross-attention has no to_kv: context_kv_projection = false)" : "");
  }
  if (!matching.differences.empty())
    fail<DataError>(file.path, ": ", matching.differences.front(), "; is the config another one?");
  std::vector<std::string> unknown;
  for (const Match& match : matching.tensors)
    if (match.fate == Fate::unknown) unknown.push_back(match.entry->name);
  if (!unknown.empty())
    fail<DataError>(file.path, ": holds ", unknown.size(),
                    " tensors that the model has no place for: ", first_few(unknown), "; is the config another one?");
}

/// Whether a tensor that became a parameter is in half precision; f64 is rounded.
bool has_type(const Matching& matching, std::initializer_list<safetensors::Type> types) {
  return std::any_of(matching.tensors.begin(), matching.tensors.end(), [&](const Match& match) {
    return match.parameter != nullptr && std::find(types.begin(), types.end(), match.entry->type) != types.end();
  });
}

}  // namespace

int import_weights(const ImportOptions& options, std::ostream& out) {
  if (options.file.empty()) fail<UsageError>("import: give the safetensors file to import");
  if (options.config.empty())
    fail<UsageError>("import: --config is required: a TOML file whose table [model] holds the model's options");
  if (options.out.empty()) fail<UsageError>("import: --out is required: the folder for the checkpoint");
  if (!options.vocabulary.empty() && !options.symbols.empty())
    fail<UsageError>("import: --vocabulary and --symbols exclude each other; give one of them");
  read_config(options.config);  // a wrong flag is told before a large file is read
  require_free(options.out);

  const safetensors::File file = safetensors::read(options.file);
  if (is_checkpoint(file))
    fail<DataError>(file.path, ": is a checkpoint already; sinkhorn generate --checkpoint reads it as it is");
  const std::string prefix = options.prefix ? *options.prefix : published::find_prefix(file);
  published::refuse_batch_norm(file, prefix);
  const Settings settings = settings_for(options, file, prefix);
  RunRecord record;
  record.model = settings.model;
  record.train = settings.train;
  record.tokenizer = tokenizer_for(options, record.model.num_tokens);
  record.train.vocabulary = record.tokenizer.is_bytes() ? "byte" : "char";
  record.data_name = "imported from " + file.path;
  SinkhornTransformerLM model(record.model);

  line(
      out, "file",
      fmt::format("{}: {} tensors, {} bytes", file.path, file.entries.size(), grouped(std::int64_t(file.data.size()))));
  const std::string origin = published::origin_of(prefix);
  if (!prefix.empty()) line(out, "prefix", prefix + " is taken off" + (origin.empty() ? "" : " (" + origin + ")"));
  const Matching matching = published::match(file, prefix, model);
  report(matching, out);
  require_fit(matching, file, record.model);
  published::load(file, matching, Rng(std::uint64_t(options.seed)));

  using enum safetensors::Type;
  const bool half = has_type(matching, {F16, BF16}), wide = has_type(matching, {F64});
  if (half) line(out, "precision", "F16 and BF16 become f32, exactly");
  if (wide) line(out, "precision", "F64 becomes f32, rounded to the nearest");
  for (const std::string& sentence : corrected_defects(record.model, half)) line(out, "corrected", sentence);
  line(out, "vocabulary",
       record.tokenizer.is_bytes() ? "256 bytes" : fmt::format("{} characters", record.tokenizer.size()));

  RunFolder folder(options.out);
  folder.save(0, to_metadata(record, 0, "cpu"), weight_items(model));
  line(out, "written", (folder.path() / RunFolder::step_name(0)).string());
  if (record.model.causal && !record.model.return_embeddings && !record.model.receives_context)
    out << "\nnext: " << hint({"generate", "--checkpoint", options.out}) << "\n";
  return 0;
}

int export_weights(const ExportOptions& options, std::ostream& out) {
  if (options.checkpoint.empty()) fail<UsageError>("export: give a checkpoint file or the folder of a run");
  if (options.out.empty()) fail<UsageError>("export: --out is required: the safetensors file to write");
  std::error_code ignored;
  if (fs::exists(options.out, ignored)) fail<DataError>("export: ", options.out, " exists; choose another name");
  const TrainedModel trained = load_trained_model(options.checkpoint);
  std::vector<std::pair<std::string, Tensor>> tensors;
  const auto add = [&](const std::string& part, SinkhornTransformerLM& model) {
    for (auto& [name, tensor] : published::tensors_of(model)) tensors.emplace_back(part + name, tensor);
  };
  if (trained.model->has_encoder()) {  // two models of the package
    add("encoder.", trained.model->encoder_decoder().encoder());
    add("decoder.", trained.model->encoder_decoder().decoder());
  } else {
    add("", trained.model->language_model());
  }
  std::vector<safetensors::Item> items;
  std::int64_t numbers = 0;
  for (const auto& [name, tensor] : tensors) {
    items.push_back(to_item(options.prefix + name, tensor));
    numbers += tensor.count();
  }
  safetensors::write(options.out, {{"format", "pt"}}, items);  // as PyTorch's own files say
  line(out, "checkpoint", fmt::format("{}, step {}", trained.path, grouped(trained.record.step)));
  if (trained.record.model.max_seq_len % trained.record.model.bucket_size != 0)
    line(out, "left out",
         "what tables hold for the partial bucket at the end of max_seq_len: the package rounds down to whole buckets");
  line(out, "written", fmt::format("{}: {} tensors, {} numbers", options.out, items.size(), grouped(numbers)));
  return 0;
}

}  // namespace sinkhorn
