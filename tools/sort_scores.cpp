#include "tools/sort_scores.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <map>

#include "autograd/error.h"
#include "autograd/rng.h"
#include "tools/checkpoint.h"
#include "tools/task.h"

namespace sinkhorn {
namespace {

constexpr std::int64_t kMostBuckets = 1024;
constexpr double kLargestScore = 1e6;

SortSource one_head(std::string name, Tensor scores) {
  SortHead head;
  head.scores = std::move(scores);
  SortLayer layer;
  layer.heads.push_back(std::move(head));
  SortSource source;
  source.name = std::move(name);
  source.layers.push_back(std::move(layer));
  return source;
}

/// The numbers of one line. `where` names the line.
std::vector<double> parse_row(std::string_view line, const std::string& where) {
  std::vector<double> row;
  line = line.substr(0, line.find('#'));
  constexpr std::string_view gaps = " \t\r,;";
  for (std::size_t at = 0; (at = line.find_first_not_of(gaps, at)) != std::string_view::npos;) {
    const std::string_view word = line.substr(at, line.find_first_of(gaps, at) - at);
    at += word.size();
    const std::string_view digits = word.front() == '+' ? word.substr(1) : word;
    double value = 0;
    const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), value);
    if (error == std::errc::result_out_of_range || (error == std::errc() && std::isinf(value)))
      fail<DataError>(where, ": \"", word, "\" is too large; scores lie between -1e6 and 1e6");
    if (error != std::errc() || end != digits.data() + digits.size() || std::isnan(value))
      fail<DataError>(where, ": expected a number, got \"", word.substr(0, 40), "\"; parts are spaces or commas");
    if (std::abs(value) > kLargestScore)
      fail<DataError>(where, ": ", word, " is too large; scores lie between -1e6 and 1e6");
    row.push_back(value);
  }
  return row;
}

/// What one attention layer showed of itself.
using Shown = std::map<std::string, Tensor, std::less<>>;

/// Collects what sort nets observe, a map for each attention, in the order of the model.
class Watcher {
 public:
  const Observer* observer() const { return &observer_; }
  std::vector<Shown> take() { return std::exchange(attentions_, {}); }

 private:
  // "heads" ends an attention; what a feed-forward shows stands between it and the next "sublayer".
  Observer observer_ = [this](std::string_view what, const Tensor& value) {
    if (what == "heads") {
      now_.insert_or_assign("heads", value);
      attentions_.push_back(std::exchange(now_, {}));
    } else if (what == "sublayer") {
      now_.clear();
    } else {
      now_.insert_or_assign(std::string(what), value);
    }
  };
  Shown now_;
  std::vector<Shown> attentions_;
};

/// Head h of a tensor (1, heads, ...).
Tensor of_head(const Shown& shown, const char* what, std::int64_t h) {
  const Tensor& all = shown.at(what);
  const Shape s = all.shape();
  return all.reshape({s[1], s[2], s[3]}).slice(h, h + 1).reshape({s[2], s[3]});
}

enum class Part { self, cross };

SortLayer layer_of(const Shown& shown, const ModelConfig& config, Part part) {
  const std::int64_t local = part == Part::cross ? 0 : config.n_local_attn_heads, sorting = config.heads - local;
  const bool causal = config.causal && part == Part::self, by_top_k = !shown.contains("log_scores");
  SortLayer layer;
  layer.local_heads = local;
  layer.heads.reserve(std::size_t(sorting));
  for (std::int64_t h = 0; h < sorting; ++h) {
    SortHead head;
    head.number = local + h + 1;
    head.rotated = causal && h >= sorting / 2 && config.bucket_size > 1;
    head.by_top_k = by_top_k;
    head.shared = part == Part::cross ? config.context_n_sortcut : config.n_sortcut;
    if (by_top_k) {
      head.scores = of_head(shown, "scores", h);
      head.picks = of_head(shown, "picks", h);
      head.weights = of_head(shown, "weights", h);
      head.nulls = causal ? config.n_top_buckets : 0;
    } else {
      head.scores = of_head(shown, "log_scores", h);
      head.matrix = of_head(shown, "sorting_matrix", h);
      head.open = shown.at("open").reshape({shown.at("open").count()});
    }
    layer.heads.push_back(std::move(head));
  }
  return layer;
}

/// The layers of a stack: of a language model (""), of an "encoder" or a "decoder".
std::vector<SortLayer> layers_of(const std::vector<Shown>& attentions, const ModelConfig& config,
                                 const std::string& stack) {
  std::vector<SortLayer> layers;
  layers.reserve(attentions.size());
  const std::size_t blocks = config.receives_context ? 2 : 1;
  for (std::size_t i = 0; i < attentions.size(); ++i) {
    const Part part = i % blocks == 1 ? Part::cross : Part::self;
    SortLayer layer = layer_of(attentions[i], config, part);
    layer.part = part == Part::cross ? "cross" : stack;
    layer.number = std::int64_t(i / blocks) + 1;
    layer.name = fmt::format("{}{}layer {} of {}{}", stack, stack.empty() ? "" : " ", layer.number, config.depth,
                             part == Part::cross ? ", cross-attention" : "");
    layers.push_back(std::move(layer));
  }
  return layers;
}

/// Row (1, T) of the first `most` tokens; says so if there are more.
Tensor row_of(std::vector<std::int32_t> tokens, std::int64_t most, std::vector<std::string>& remarks) {
  if (std::int64_t(tokens.size()) > most) {
    remarks.push_back(fmt::format("The text has {} tokens; the model reads at most {}, so the first {} are shown.",
                                  tokens.size(), most, most));
    tokens.resize(std::size_t(most));
  }
  return Tensor::from(tokens, {1, std::int64_t(tokens.size())});
}

/// What the model reads of a text.
struct Reading {
  std::vector<std::int32_t> source, tokens;  // the source is an encoder's
};

Reading reading_of(const RunRecord& record, std::string text, const std::string& where) {
  if (!record.train.has_task()) {
    const std::vector<std::int32_t> tokens = record.tokenizer.encode(text, where);
    return record.train.encoder_decoder ? Reading{tokens, tokens} : Reading{{}, tokens};
  }
  while (!text.empty() && (text.back() == '\n' || text.back() == '\r')) text.pop_back();  // of a file
  const Task task(record.train.task, record.train.task_symbols);
  Reading reading{task.parse_source(text, where), {}};
  const std::vector<std::int32_t> answer = task.answer(reading.source, where);
  if (!record.train.encoder_decoder) reading.tokens = std::exchange(reading.source, {});
  reading.tokens.push_back(Task::separator);
  reading.tokens.insert(reading.tokens.end(), answer.begin(), answer.end());
  return reading;
}

std::vector<SortLayer> run_model(const TrainedModel& trained, const Reading& reading,
                                 std::vector<std::string>& remarks) {
  Watcher watcher;
  const Scope scope{.observer = watcher.observer()};
  const std::int64_t most = trained.record.model.max_length();
  const Tensor ids = row_of(reading.tokens, most, remarks);
  if (!trained.model->has_encoder()) {
    const SinkhornTransformerLM& model = trained.model->language_model();
    if (model.config().receives_context)
      fail<UsageError>("sort-view: ", trained.path, " reads the context of an encoder, which is not in the file");
    padded(model, scope, ids);
    return layers_of(watcher.take(), model.config(), "");
  }
  const EncoderDecoder& pair = trained.model->encoder_decoder();
  const Tensor source = row_of(reading.source, most, remarks);
  const Var encoded = pair.encode(scope, {source, {}});
  std::vector<SortLayer> layers = layers_of(watcher.take(), pair.encoder().config(), "encoder");
  pair.decode(scope, {ids, {}}, encoded, {});
  std::vector<SortLayer> more = layers_of(watcher.take(), pair.decoder().config(), "decoder");
  std::move(more.begin(), more.end(), std::back_inserter(layers));
  return layers;
}

/// "2 to 4", "2".
std::string numbers_of(const SortLayer& layer) {
  const std::int64_t first = layer.heads.front().number, last = layer.heads.back().number;
  return first == last ? fmt::format("head {} has", first) : fmt::format("heads {} to {} have", first, last);
}

/// The first layer and head that a choice fits.
HeadPlace find(const std::vector<SortLayer>& layers, const HeadChoice& choice, const TrainedModel& trained) {
  const std::int64_t depth = trained.record.model.depth, heads = trained.record.model.heads;
  const auto refuse = [](const auto&... parts) { fail<UsageError>("sort-view: ", parts...); };
  const bool any_part = choice.part == "auto";
  if (!any_part && !trained.model->has_encoder())
    refuse("--part ", choice.part, " is for an encoder-decoder, and ", trained.path,
           " is a language model; leave it out");
  if (choice.layer > depth)
    refuse("--layer ", choice.layer, " is more than the model has; its layers are 1 to ", depth);
  if (choice.head > heads) refuse("--head ", choice.head, " is more than the model has; its heads are 1 to ", heads);
  std::string elsewhere;
  for (std::size_t l = 0; l < layers.size(); ++l) {
    const SortLayer& layer = layers[l];
    if (layer.heads.empty()) continue;
    if (elsewhere.empty()) elsewhere = layer.name + ", " + numbers_of(layer);
    if ((!any_part && layer.part != choice.part) || (choice.layer > 0 && layer.number != choice.layer)) continue;
    if (choice.head > 0 && choice.head <= layer.local_heads)
      refuse("head ", choice.head, " of ", layer.name, " is a local head and sorts nothing; ", numbers_of(layer),
             " a sort net: give --head ", layer.heads.front().number);
    return {l, choice.head > 0 ? std::size_t(choice.head - 1 - layer.local_heads) : 0};
  }
  fail<UsageError>("sort-view: all ", heads, " heads ", any_part ? "" : "of the " + choice.part + " ",
                   "are local heads, which look at their neighbours and have no sort net; ",
                   elsewhere.empty() ? "train with a smaller --n-local-attn-heads" : "in " + elsewhere + " one");
}

}  // namespace

SortSource random_scores(std::int64_t buckets, std::uint64_t seed) {
  return one_head(fmt::format("random scores, {} x {} buckets, seed {}", buckets, buckets, seed),
                  normal(Rng(seed).split(0), {buckets, buckets}, 0, 1, DType::f64));
}

SortSource parse_scores(const std::string& text, const std::string& where) {
  std::vector<double> values;
  std::int64_t rows = 0, columns = 0, number = 0, first_line = 0;
  std::string_view rest = text;
  while (!rest.empty()) {
    const std::size_t end = std::min(rest.find('\n'), rest.size());
    const std::string at = fmt::format("{}, line {}", where, ++number);
    const std::vector<double> row = parse_row(rest.substr(0, end), at);
    rest.remove_prefix(std::min(end + 1, rest.size()));
    if (row.empty()) continue;
    if (rows == 0) {
      columns = std::int64_t(row.size());
      first_line = number;
      if (columns > kMostBuckets)
        fail<DataError>(at, ": ", columns, " numbers in a row; the viewer takes matrices up to ", kMostBuckets, " x ",
                        kMostBuckets);
    }
    if (std::int64_t(row.size()) != columns)
      fail<DataError>(at, ": ", row.size(), " numbers, but line ", first_line, " has ", columns,
                      "; every row needs as many");
    if (++rows > kMostBuckets)
      fail<DataError>(at, ": more than ", kMostBuckets, " rows; the viewer takes matrices up to ", kMostBuckets, " x ",
                      kMostBuckets);
    values.insert(values.end(), row.begin(), row.end());
  }
  if (rows == 0) fail<DataError>(where, ": holds no numbers; write a square matrix, one row a line");
  if (rows != columns)
    fail<DataError>(where, ": ", rows, " rows of ", columns,
                    " numbers; a sorting matrix is square: give as many rows as columns");
  return one_head(fmt::format("{}, {} x {} buckets", where, rows, columns), Tensor::from(values, {rows, columns}));
}

SortSource checkpoint_scores(const std::string& checkpoint, const std::string& text, const std::string& where,
                             const HeadChoice& choice, HeadPlace& place) {
  const TrainedModel trained = load_trained_model(checkpoint);
  if (text.empty()) fail<DataError>(where, ": is empty; give the model something to read");
  const Reading reading = reading_of(trained.record, text, where);
  SortSource source;
  source.name = trained.path;
  source.model = SortModel{trained.record.model.temperature, trained.record.model.sinkhorn_iter};
  const std::vector<SortLayer> all = run_model(trained, reading, source.remarks);
  const HeadPlace chosen = find(all, choice, trained);
  for (std::size_t l = 0; l < all.size(); ++l) {
    if (l == chosen.layer) place = {source.layers.size(), chosen.head};
    if (!all[l].heads.empty()) source.layers.push_back(all[l]);
  }
  return source;
}

}  // namespace sinkhorn
