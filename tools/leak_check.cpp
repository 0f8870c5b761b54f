#include "tools/leak_check.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <ostream>
#include <set>

#include "autograd/parallel.h"
#include "tools/checkpoint.h"
#include "tools/planted_attention.h"
#include "tools/progress.h"
#include "tools/sequence_model.h"

namespace sinkhorn {
namespace {

/// Everything of a forward pass that must not know the future, in the order of its computation: heads (1, T, H, d),
/// sublayers (1, T, D), logits (1, T, V) at the end.
struct Trace {
  std::vector<std::string> what;
  Tensors values;
};

Trace trace(const SinkhornTransformerLM& model, const Tensor& ids, const Tensor& context) {
  Trace result;
  const Observer observer = [&](std::string_view what, const Tensor& value) {
    if (what != "heads" && what != "sublayer") return;
    result.what.emplace_back(what);
    result.values.push_back(value);
  };
  const AttentionContext around = with_whole_buckets(model.config(), {{}, context});
  const Tensor logits = model(Scope{.observer = &observer}, ids, around).value;
  result.what.emplace_back("logits");
  result.values.push_back(logits);
  return result;
}

/// Positions 0 .. until-1 at which the slots of two tensors (1, T, ...) differ in a bit.
std::vector<std::int64_t> differing(const Tensor& a, const Tensor& b, std::int64_t until) {
  std::vector<std::int64_t> positions;
  const std::size_t slot = a.bytes() / std::size_t(a.shape()[1]);
  for (std::int64_t t = 0; t < until; ++t) {
    const std::byte* at = a.raw() + std::size_t(t) * slot;
    if (!std::equal(at, at + slot, b.raw() + std::size_t(t) * slot)) positions.push_back(t);
  }
  return positions;
}

/// The index of the first value of a trace that moved before `until`; the trace's size if none did.
std::size_t first_moved(const Trace& a, const Trace& b, std::int64_t until) {
  std::size_t i = 0;
  while (i < a.values.size() && differing(a.values[i], b.values[i], until).empty()) ++i;
  return i;
}

/// One trial: its tokens, and the same with other ones from `cut` on.
struct Trial {
  Trial(std::int64_t index, std::int64_t trials, std::int64_t length, std::int64_t vocabulary, std::uint64_t seed)
      : vocabulary(vocabulary),
        ids(integers(Rng(seed).split(std::uint32_t(2 * index)), {1, length}, std::int32_t(vocabulary))),
        bits(Rng(seed).split(std::uint32_t(2 * index + 1)).bits()) {
    // Cuts 1 .. length-1, one from each of `trials` equal stretches.
    const double stretch = double(length - 1) / double(trials);
    cut = 1 + std::int64_t((double(index) + bits.uniform<double>(0)) * stretch);
    cut = std::clamp<std::int64_t>(cut, 1, length - 1);
  }
  /// Tokens cut .. end-1 changed, each to another one.
  Tensor changed(std::int64_t end) const {
    Tensor other = ids.clone();
    for (std::int64_t t = cut; t < end; ++t) {
      std::int32_t& id = other.data<std::int32_t>()[t];
      id = std::int32_t((id + 1 + std::int64_t(bits.word(std::uint64_t(t) + 1)) % (vocabulary - 1)) % vocabulary);
    }
    return other;
  }
  std::int64_t length() const { return ids.shape()[1]; }

  std::int64_t vocabulary;
  Tensor ids;
  RandomBits bits;
  std::int64_t cut = 1;
};

/// Follows a leak to one token, one layer and one head.
LeakSource source_of(const SinkhornTransformerLM& model, const Trial& trial, const Tensor& context) {
  const Trace before = trace(model, trial.ids, context);
  // Changing the tokens cut .. leaky-1 moves the first part that all later tokens move (or an earlier one), changing
  // cut .. clean-1 does not: halve until they are neighbours.
  std::int64_t clean = trial.cut, leaky = trial.length();
  Trace after = trace(model, trial.changed(leaky), context);
  const std::size_t first = first_moved(before, after, trial.cut);
  while (leaky - clean > 1) {
    const std::int64_t middle = clean + (leaky - clean) / 2;
    Trace tried = trace(model, trial.changed(middle), context);
    if (first_moved(before, tried, trial.cut) <= first) {
      leaky = middle;
      after = std::move(tried);
    } else {
      clean = middle;
    }
  }
  const std::size_t index = first_moved(before, after, trial.cut);
  LeakSource source;
  source.input = leaky - 1;
  const Tensor &a = before.values[index], &b = after.values[index];
  source.position = differing(a, b, trial.cut).front();
  const auto sublayers = std::count(before.what.begin(), before.what.begin() + std::ptrdiff_t(index), "sublayer");
  // Two sublayers make a block; with a context a layer has two blocks, the second of them crosses over.
  const std::int64_t block = sublayers / 2, blocks = model.config().receives_context ? 2 : 1;
  source.layer = block / blocks;
  source.cross = block % blocks == 1;
  if (before.what[index] == "heads") {
    const std::int64_t heads = a.shape()[2];
    const std::size_t bytes = a.bytes() / std::size_t(a.shape()[1] * heads);
    for (source.head = 0; source.head < heads; ++source.head) {
      const std::size_t at = std::size_t(source.position * heads + source.head) * bytes;
      if (!std::equal(a.raw() + at, a.raw() + at + bytes, b.raw() + at)) break;
    }
  } else if (before.what[index] == "sublayer") {
    source.part = sublayers % 2 == 0 ? "attention" : "feed-forward";
  } else {
    source.part = "logits";
  }
  return source;
}

std::string head_kind(const ModelConfig& config, std::int64_t head, bool cross) {
  if (cross) return "cross-attention";
  const std::int64_t sorting = head - config.n_local_attn_heads;
  if (sorting < 0) return "local";
  return sorting < config.sinkhorn_heads() / 2 ? "sorting" : "sorting, rotated";
}

std::string listed(const std::vector<std::int64_t>& numbers) {
  constexpr std::size_t shown = 8;
  std::string text;
  for (std::size_t i = 0; i < std::min(numbers.size(), shown); ++i)
    text += (i ? ", " : "") + std::to_string(numbers[i]);
  return numbers.size() > shown ? text + ", ..." : text;
}

DType dtype_named(const std::string& name) {
  return name == "f64" ? DType::f64 : name == "bf16" ? DType::bf16 : DType::f32;
}

/// The model to check, a language model or an encoder with its decoder, and what to call it.
struct Subject {
  std::string name;
  std::int64_t seq_len = 0;
  std::unique_ptr<SinkhornTransformerLM> model;
  std::unique_ptr<EncoderDecoder> pair;

  void make(const ModelConfig& config, bool encoder_decoder, const Rng& rng, DType dtype) {
    if (encoder_decoder)
      pair = std::make_unique<EncoderDecoder>(encoder_and_decoder(config), rng, dtype);
    else
      model = std::make_unique<SinkhornTransformerLM>(config, rng, dtype);
  }
  SinkhornTransformerLM& checked() { return pair ? pair->decoder() : *model; }
  template <class Use>
  void each_parameter(Use use) {
    if (pair)
      for_each_parameter(*pair, use);
    else
      for_each_parameter(*model, use);
  }
  /// What the encoder makes of a random source; nothing for a language model.
  Tensor context(std::uint64_t seed) const {
    if (!pair) return {};
    const ModelConfig& c = pair->encoder().config();
    return pair->encode(Scope{}, {integers(Rng(seed).split(0xC0DE), {1, seq_len}, std::int32_t(c.num_tokens)), {}})
        .value;
  }
};

Subject from_checkpoint(const LeakCheckOptions& options, DType dtype) {
  TrainedModel trained = load_trained_model(options.checkpoint);
  require_predictor(trained, "leak-check");
  const ModelConfig& config = trained.record.model;
  Subject subject{trained.path, options.seq_len > 0 ? options.seq_len : trained.record.train.seq_len, {}, {}};
  subject.make(config, trained.record.train.encoder_decoder, Rng(0), dtype);
  const std::vector<const Parameter*> from = parameters_of(*trained.model);
  std::size_t next = 0;
  subject.each_parameter([&](const std::string&, Parameter& p) { p.value = from[next++]->value.to(dtype); });
  return subject;
}

Subject from_settings(const LeakCheckOptions& options, DType dtype) {
  Flags flags;
  if (!options.preset.empty()) flags.emplace_back("preset", options.preset);
  if (options.seq_len > 0) flags.emplace_back("seq_len", std::to_string(options.seq_len));
  Settings settings = resolve(options.config, flags);
  ModelConfig& config = settings.model;
  if (config.num_tokens == 0) config.num_tokens = settings.train.vocabulary == "byte" ? 256 : 96;  // printable ASCII
  Subject subject{
      options.config.empty() ? "preset " + settings.train.preset : options.config, settings.train.seq_len, {}, {}};
  subject.make(config, settings.train.encoder_decoder, Rng(std::uint64_t(options.seed)), dtype);
  // A residual scale of 0 would hide every layer.
  subject.each_parameter([](const std::string& name, Parameter& p) {
    if (name.ends_with(".g")) p.value = Tensor::full(p.value.shape(), 1, p.value.dtype());
  });
  return subject;
}

/// Refuses what the check cannot say anything about.
void require_checkable(const ModelConfig& config, std::int64_t length, const Plant* plant) {
  const auto refuse = [](const auto&... parts) { fail<UsageError>("leak-check: ", parts...); };
  if (!config.causal) refuse("the model is not causal: every position sees all others by design");
  if (config.num_tokens < 2) refuse("a vocabulary of one token leaves no other to change to");
  if (length < 2) refuse("--seq-len must be at least 2: one token has no later one");
  if (const std::int64_t multiple = config.length_multiple(); length % multiple != 0)
    refuse("--seq-len ", length, " is not a multiple of bucket_size ", multiple, "; the next one is ",
           (length / multiple + 1) * multiple);
  if (length > config.max_length())
    refuse("--seq-len ", length, " is longer than the model's max_seq_len ", config.max_seq_len, "; lower it");
  if (plant == nullptr) return;
  if (plant->needs_local && config.n_local_attn_heads == 0)
    refuse("--plant ", plant->name, " is a mistake of local heads, and the model has none; choose another");
  if (plant->mistake == Plant::Mistake::local_positions_bf16 && length <= 257)
    refuse("--plant ", plant->name, " changes nothing up to position 256; give a longer --seq-len, such as 512");
  if (plant->needs_sorting && config.sinkhorn_heads() == 0)
    refuse("--plant ", plant->name, " is a mistake of sorting heads, and the model has none; choose another");
  if (plant->needs_attention_sort && config.use_simple_sort_net)
    refuse("--plant ", plant->name,
           " is a mistake of the attention sort net, and the model has the simple one; "
           "choose another");
}

void print(const LeakReport& report, const ModelConfig& config, std::ostream& out) {
  if (!report.first) {
    out << fmt::format("clean     no logit and no head of {} layer{} x {} head{} moved with a later token\n",
                       config.depth, config.depth == 1 ? "" : "s", config.heads, config.heads == 1 ? "" : "s");
    return;
  }
  const LeakSource& first = *report.first;
  out << fmt::format("LEAK      in {} of {} trials an earlier output moved with a later token\n", report.leaky,
                     report.trials);
  std::string where = first.part;
  if (first.part != "logits") where = fmt::format("layer {} of {}, {}", first.layer + 1, config.depth, first.part);
  if (first.head >= 0)
    where = fmt::format("layer {} of {}, head {} of {} ({})", first.layer + 1, config.depth, first.head + 1,
                        config.heads, head_kind(config, first.head, first.cross));
  out << fmt::format("first     {}: its output at position {} moves with the token at position {}\n", where,
                     first.position, first.input);
  if (report.moved.empty())
    out << "logits    none moved: rounding hides it from them\n";
  else
    out << fmt::format("logits    moved at {} position{} ({}); the most by {:.3g}, at position {}\n",
                       report.moved.size(), report.moved.size() == 1 ? "" : "s", listed(report.moved), report.largest,
                       report.largest_position);
}

}  // namespace

LeakReport find_leaks(const SinkhornTransformerLM& model, std::int64_t length, std::int64_t trials, std::uint64_t seed,
                      const Tensor& context) {
  LeakReport report{.trials = trials, .leaky = 0, .first = {}, .moved = {}, .largest = 0, .largest_position = 0};
  std::set<std::int64_t> moved;
  std::optional<Trial> earliest;
  std::size_t earliest_index = std::size_t(-1);
  for (std::int64_t i = 0; i < trials; ++i) {
    const Trial trial(i, trials, length, model.config().num_tokens, seed);
    const Trace before = trace(model, trial.ids, context), after = trace(model, trial.changed(length), context);
    const std::size_t index = first_moved(before, after, trial.cut);
    if (index == before.values.size()) continue;
    ++report.leaky;
    if (index < earliest_index) {
      earliest_index = index;
      earliest = trial;
    }
    const Tensor &a = before.values.back(), &b = after.values.back();
    const std::vector<std::int64_t> positions = differing(a, b, trial.cut);
    if (positions.empty()) continue;
    const std::vector<double> x = a.to_vector(), y = b.to_vector();
    const std::size_t width = x.size() / std::size_t(length);
    for (const std::int64_t t : positions) {
      moved.insert(t);
      for (std::size_t e = std::size_t(t) * width; e < std::size_t(t + 1) * width; ++e)
        if (const double change = std::abs(x[e] - y[e]); change > report.largest) {
          report.largest = change;
          report.largest_position = t;
        }
    }
  }
  report.moved.assign(moved.begin(), moved.end());
  if (earliest) report.first = source_of(model, *earliest, context);
  return report;
}

Fields fields(LeakCheckOptions& o) {
  return {
      {"checkpoint", &o.checkpoint, anything(), "checkpoint file, or a run's folder, whose best one is taken"},
      {"preset", &o.preset, anything(), "preset whose model is checked, with random weights; default cpu-small"},
      {"config", &o.config, anything(), "TOML file whose model is checked, with random weights"},
      {"seq_len", &o.seq_len, at_least(0), "tokens in a sequence; 0 takes that of the preset, file or checkpoint"},
      {"trials", &o.trials, at_least(1), "sequences to try, each changed from another position on"},
      {"dtype", &o.dtype, one_of({"f32", "f64", "bf16"}), "type of weights and activations"},
      {"seed", &o.seed, at_least(0), "of the random weights and tokens"},
      {"plant", &o.plant, anything(), "put a known leak into the attention, to see it found"},
      {"device", &o.device, one_of({"auto", "cpu", "cuda"}), "where to compute"},
      {"threads", &o.threads, between(0, 1024), "threads of the CPU backend; 0 takes all cores"},
  };
}

int leak_check(const LeakCheckOptions& options, std::ostream& out) {
  if (!options.checkpoint.empty() && !(options.preset.empty() && options.config.empty()))
    fail<UsageError>("leak-check: --checkpoint excludes --preset and --config; the checkpoint says what its model is");
  const Plant* plant = options.plant.empty() ? nullptr : &find_plant(options.plant);
  if (options.device == "cuda")
    fail<DeviceError>("leak-check: compares bits on the CPU alone; leave --device out, or use --device cpu");
  if (options.threads > 0) set_threads(int(options.threads));
  const DType dtype = dtype_named(options.dtype);
  Subject subject = options.checkpoint.empty() ? from_settings(options, dtype) : from_checkpoint(options, dtype);
  SinkhornTransformerLM& model = subject.checked();
  require_checkable(model.config(), subject.seq_len, plant);
  if (plant != nullptr) model.stack().use_attention_twin(planted_attention(*plant));

  std::int64_t parameters = 0;
  subject.each_parameter([&](const std::string&, const Parameter& p) { parameters += p.value.count(); });
  out << fmt::format("model     {}: {} parameters in {}{}\n", subject.name, grouped(parameters), options.dtype,
                     options.checkpoint.empty() ? fmt::format(", random from seed {}", options.seed) : "");
  if (plant != nullptr) out << fmt::format("planted   {}: {}\n", plant->name, plant->purpose);
  out << fmt::format(
             "check     {} trial{} of {} tokens: those after a position are changed, all before compared bit for bit\n",
             options.trials, options.trials == 1 ? "" : "s", subject.seq_len)
      << std::flush;
  const auto seed = std::uint64_t(options.seed);
  const LeakReport report = find_leaks(model, subject.seq_len, options.trials, seed, subject.context(seed));
  print(report, model.config(), out);
  return report.first ? 1 : 0;
}

}  // namespace sinkhorn
