#include "tools/parity.h"

#include <algorithm>
#include <filesystem>
#include <iomanip>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>

#include "autograd/gradcheck.h"
#include "models/encoder_decoder.h"
#include "models/weights.h"
#include "tools/device.h"

namespace sinkhorn {
namespace {

/// What a fixture says beside its config.
struct CallOptions {
  std::optional<Side> autopad;
  Side pad = Side::right;
};

/// What one run of a model gives, to be compared with the fixture's tensors.
struct Results {
  Tensor out, loss;
  std::map<std::string, Tensor> gradients;  // by the fixture's names, grad.* and ingrad.x
};

class Fixture {
 public:
  explicit Fixture(const std::filesystem::path& path) : file_(safetensors::read(path)) {
    kind = text("kind");
    const std::string json = text("config");
    config = model_config_from_json(json, file_.path, {"autopad", "pad_left", "encoder", "decoder"});
    const auto parsed = nlohmann::json::parse(json);
    if (kind == "encoder_decoder") {
      for (const char* part : {"encoder", "decoder"})
        if (!parsed.contains(part)) fail<DataError>(file_.path, ": its config has no '", part, "'");
      pair.encoder = model_config_from_json(parsed["encoder"].dump(), file_.path);
      pair.decoder = model_config_from_json(parsed["decoder"].dump(), file_.path);
    }
    if (parsed.contains("autopad")) call.autopad = parsed["autopad"] == "left" ? Side::left : Side::right;
    if (parsed.value("pad_left", false)) call.pad = Side::left;
  }

  Tensor tensor(const std::string& name, DType dtype) const { return read_tensor(file_, file_.require(name), dtype); }
  Tensor optional(const std::string& name, DType dtype, Device device) const {
    return file_.find(name) ? tensor(name, dtype).to(device) : Tensor();
  }

  template <class Model>
  void load(Model& model, const std::string& prefix = "") const {
    load_parameters(file_, prefix + "param.", model);
  }
  /// noise.0, noise.1, ... in the order in which a forward pass asks for them.
  InjectedNoise noise() const {
    Tensors arrays;
    while (const Tensor next = optional("noise." + std::to_string(arrays.size()), DType::f64, Device::cpu))
      arrays.push_back(next);
    return InjectedNoise(std::move(arrays));
  }
  const safetensors::File& file() const { return file_; }

  std::string kind;
  ModelConfig config;
  EncoderDecoderConfig pair;
  CallOptions call;

 private:
  std::string text(const std::string& key) const {
    const auto found = file_.metadata.find(key);
    if (found == file_.metadata.end()) fail<DataError>(file_.path, ": not a fixture: its metadata has no '", key, "'");
    return found->second;
  }
  safetensors::File file_;
};

template <class Model>
void collect_gradients(Model& model, const Gradients& gradients, Results& results, const std::string& prefix = "") {
  for_each_parameter(model, [&](const std::string& name, const Parameter& parameter) {
    const Tensor gradient = gradients.of(parameter);
    results.gradients[prefix + "grad." + name] =
        gradient ? gradient : Tensor::zeros(parameter.value.shape(), DType::f64);
  });
}

Results run_transformer(const Fixture& fixture, Device device) {
  Initializer init(Rng(0), DType::f64);
  SinkhornTransformer model(fixture.config, init);
  fixture.load(model);
  move_to(device, model);
  InjectedNoise noise = fixture.noise();
  const Scope scope{.tape = Tape::record(), .injected = &noise};
  const Var x = scope.tape.leaf(fixture.tensor("in.x", DType::f64).to(device));
  const Tensor mask = fixture.optional("in.input_mask", DType::boolean, device);
  const Var y = fixture.call.autopad ? padded(model, scope, x, mask, *fixture.call.autopad) : model(scope, x, mask);
  const Var loss = sum(mul(y, fixture.tensor("in.w", DType::f64).to(device)));
  const Gradients gradients = scope.tape.backward(loss);
  Results results{y.value, loss.value, {{"ingrad.x", gradients.of(x)}}};
  collect_gradients(model, gradients, results);
  return results;
}

Results run_language_model(const Fixture& fixture, Device device) {
  SinkhornTransformerLM model(fixture.config, Rng(0), DType::f64);
  fixture.load(model);
  move_to(device, model);
  InjectedNoise noise = fixture.noise();
  const Scope scope{.tape = Tape::record(), .injected = &noise};
  const Tensor ids = fixture.tensor("in.ids", DType::i32).to(device);
  const Tensor mask = fixture.optional("in.input_mask", DType::boolean, device);
  Var y, loss;
  if (fixture.kind == "autoregressive_loss") {
    loss = autoregressive_loss(model, scope, ids, mask, fixture.call.pad).loss;
    // The loss never holds all logits, so they are asked for apart, with the same noise.
    InjectedNoise again = fixture.noise();
    const auto inputs_of = [&](const Tensor& x) { return x ? slice(Var(x), 1, 0, ids.shape()[1] - 1).value : x; };
    y = padded(model, Scope{.injected = &again}, inputs_of(ids), inputs_of(mask), fixture.call.pad);
  } else {
    y = fixture.call.autopad ? padded(model, scope, ids, mask, *fixture.call.autopad) : model(scope, ids, mask);
    loss = fixture.kind == "lm" ? cross_entropy(y, fixture.tensor("in.targets", DType::i32).to(device), mask).loss
                                : sum(mul(y, fixture.tensor("in.w", DType::f64).to(device)));
  }
  Results results{y.value, loss.value, {}};
  collect_gradients(model, scope.tape.backward(loss), results);
  return results;
}

Results run_encoder_decoder(const Fixture& fixture, Device device) {
  EncoderDecoder model(fixture.pair, Rng(0), DType::f64);
  fixture.load(model.encoder(), "encoder.");
  fixture.load(model.decoder(), "decoder.");
  move_to(device, model.encoder());
  move_to(device, model.decoder());
  InjectedNoise noise = fixture.noise();
  const Scope scope{.tape = Tape::record(), .injected = &noise};
  const MaskedIds source{fixture.tensor("in.ids", DType::i32).to(device),
                         fixture.optional("in.input_mask", DType::boolean, device)};
  const MaskedIds target{fixture.tensor("in.decoder_ids", DType::i32).to(device),
                         fixture.optional("in.decoder_mask", DType::boolean, device)};
  const Var y = model(scope, source, target);
  const Var loss = cross_entropy(y, fixture.tensor("in.targets", DType::i32).to(device), target.mask).loss;
  const Gradients gradients = scope.tape.backward(loss);
  Results results{y.value, loss.value, {}};
  collect_gradients(model.encoder(), gradients, results, "encoder.");
  collect_gradients(model.decoder(), gradients, results, "decoder.");
  return results;
}

Results run(const Fixture& fixture, Device device) {
  if (fixture.kind == "encoder_decoder") return run_encoder_decoder(fixture, device);
  if (fixture.kind == "transformer") return run_transformer(fixture, device);
  if (fixture.kind == "lm" || fixture.kind == "lm_embeddings" || fixture.kind == "autoregressive_loss")
    return run_language_model(fixture, device);
  fail<UsageError>("the kind '", fixture.kind, "' is not supported by this version");
}

struct Errors {
  double out = 0, loss = 0, gradients = 0;
  std::string worst_gradient;
};

Errors compare(const Fixture& fixture, const Results& results) {
  Errors errors;
  errors.out = relative_error(results.out, fixture.tensor("out", DType::f64));
  errors.loss = relative_error(results.loss.reshape({1}), fixture.tensor("loss", DType::f64).reshape({1}));
  std::map<std::string, Tensor> wanted;
  double largest = 0;
  for (const safetensors::Entry& entry : fixture.file().entries) {
    const bool is_gradient = entry.name.starts_with("grad.") || entry.name.starts_with("ingrad.") ||
                             entry.name.starts_with("encoder.grad.") || entry.name.starts_with("decoder.grad.");
    if (!is_gradient) continue;
    const Tensor& gradient = wanted[entry.name] = read_tensor(fixture.file(), entry, DType::f64);
    for (double x : gradient.to_vector()) largest = std::max(largest, std::abs(x));
  }
  for (const auto& [name, want] : wanted) {
    const auto got = results.gradients.find(name);
    const double error =
        relative_error(got == results.gradients.end() ? Tensor::zeros({0}, DType::f64) : got->second, want, largest);
    if (error >= errors.gradients) {
      errors.gradients = error;
      errors.worst_gradient = name;
    }
  }
  return errors;
}

std::vector<std::filesystem::path> fixture_files(const std::vector<std::string>& paths) {
  namespace fs = std::filesystem;
  std::vector<fs::path> files;
  for (const fs::path path : paths) {
    if (!fs::exists(path)) fail<DataError>("parity: ", path.string(), " does not exist");
    if (!fs::is_directory(path)) {
      files.push_back(path);
      continue;
    }
    const std::size_t before = files.size();
    for (const auto& entry : fs::directory_iterator(path))
      if (entry.path().extension() == ".safetensors") files.push_back(entry.path());
    if (files.size() == before) fail<DataError>("parity: no .safetensors file in ", path.string());
    std::sort(files.begin() + std::ptrdiff_t(before), files.end());
  }
  if (files.empty()) fail<UsageError>("parity: give at least one fixture file or folder");
  return files;
}

}  // namespace

int parity(const ParityOptions& options, std::ostream& out) {
  return parity_on(choose_device(options.device).device, options, out);
}

int parity_on(Device device, const ParityOptions& options, std::ostream& out) {
  if (!(options.tolerance > 0)) fail<UsageError>("parity: --tolerance must be above 0");
  const auto files = fixture_files(options.paths);
  int passed = 0, failed = 0;
  for (const auto& path : files) {
    const std::string name = path.stem().string();
    try {
      const Fixture fixture(path);
      const Errors errors = compare(fixture, run(fixture, device));
      const bool agrees =
          errors.out <= options.tolerance && errors.loss <= options.tolerance && errors.gradients <= options.tolerance;
      (agrees ? passed : failed)++;
      out << (agrees ? "pass  " : "FAIL  ") << std::left << std::setw(36) << name << std::scientific
          << std::setprecision(1) << " out " << errors.out << "  loss " << errors.loss << "  gradients "
          << errors.gradients << std::defaultfloat;
      if (!agrees && errors.gradients > options.tolerance) out << " (" << errors.worst_gradient << ")";
      out << "\n";
    } catch (const Error& error) {
      ++failed;
      out << "FAIL  " << std::left << std::setw(36) << name << " " << error.what() << "\n";
    }
  }
  out << passed << " passed, " << failed << " failed" << std::endl;
  return failed == 0 ? 0 : 1;
}

}  // namespace sinkhorn
