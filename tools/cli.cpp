#include "tools/cli.h"

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cerrno>
#include <cstring>
#include <deque>
#include <functional>
#include <iostream>
#include <new>

#include "autograd/error.h"
#include "build_info.h"
#include "tools/bench.h"
#include "tools/device.h"
#include "tools/doctor.h"
#include "tools/eval.h"
#include "tools/generate.h"
#include "tools/gradcheck.h"
#include "tools/import.h"
#include "tools/leak_check.h"
#include "tools/lesson.h"
#include "tools/parity.h"
#include "tools/planted_attention.h"
#include "tools/planted_gradients.h"
#include "tools/sort_view.h"
#include "tools/tape_command.h"
#include "tools/train.h"

namespace sinkhorn {
namespace {

using Command = std::function<int()>;

std::string placeholder(const Field& field) {
  if (!field.accepts.choices.empty()) return CLI::detail::join(field.accepts.choices, "|");
  if (std::holds_alternative<std::string*>(field.slot)) return "TEXT";
  if (std::holds_alternative<std::vector<std::int64_t>*>(field.slot)) return "N,N,...";
  return std::holds_alternative<double*>(field.slot) ? "X" : "N";
}

/// A flag for each field, given as text: types and bounds are checked by the table, with the messages that a file gets.
class FieldFlags {
 public:
  void add(CLI::App& app, const Fields& fields, const std::string& group, bool show_defaults = false) {
    for (const auto& field : fields) {
      std::string& text = texts_.emplace_back();
      CLI::Option* option = nullptr;
      if (std::holds_alternative<bool*>(field.slot)) {
        option = app.add_flag(flag_of(field.name) + ",!" + flag_of("no_" + field.name), text, field.help);
      } else {
        option = app.add_option(flag_of(field.name), text, field.help)->type_name(placeholder(field));
      }
      const Value held = value_of(field);
      const auto* words = std::get_if<std::string>(&held);
      const std::string value = words ? *words : to_text(held);
      if (show_defaults && !value.empty() && value != "false") option->description(field.help + " [" + value + "]");
      option->group(group)->multi_option_policy(CLI::MultiOptionPolicy::TakeLast);
      options_.emplace_back(field.name, option);
    }
  }
  Flags given() const {
    Flags flags;
    for (std::size_t i = 0; i < options_.size(); ++i)
      if (options_[i].second->count() > 0) flags.emplace_back(options_[i].first, texts_[i]);
    return flags;
  }

 private:
  std::deque<std::string> texts_;  // addresses stay
  std::vector<std::pair<std::string, CLI::Option*>> options_;
};

/// Writes a switch as `--causal,--no-causal`; the library would add what the second one stores.
struct HelpFormatter : CLI::Formatter {
  std::string make_option_name(const CLI::Option* option, bool is_positional) const override {
    std::string name = Formatter::make_option_name(option, is_positional);
    if (const auto at = name.find("{false}"); at != std::string::npos) name.erase(at);
    return name;
  }
};

void add_train(CLI::App& app, Command& command) {
  auto* sub = app.add_subcommand("train", "Train a model on text or on a synthetic task, and print a sample");
  auto options = std::make_shared<TrainOptions>();
  auto flags = std::make_shared<FieldFlags>();
  sub->add_option("--config", options->config_path, "TOML file with tables [model] and [train]")->type_name("FILE");
  sub->add_flag("--print-config", options->print_config, "print every setting with its origin, as TOML, and stop");
  sub->add_flag("--print-options", options->print_options, "print the table of all options and stop");
  sub->add_flag("--memory", options->memory,
                "print what a step holds, tensor by tensor, before the run, and the measured peak behind it");
  Settings defaults;
  flags->add(*sub, defaults.train_fields(), "Training");
  flags->add(*sub, defaults.model_fields(), "Model");
  std::string footer = "Presets:\n";
  for (const auto& preset : presets())
    footer += "  " + preset.name + std::string(14 - preset.name.size(), ' ') + preset.purpose + "\n";
  sub->footer(footer +
              "\nExamples:\n"
              "  sinkhorn train\n"
              "  sinkhorn train --data book.txt --out runs/book --steps 2000\n"
              "  sinkhorn train --out runs/book --resume\n"
              "  sinkhorn train --task sort --task-length 16\n"
              "  sinkhorn train --preset long-204k --memory\n"
              "  sinkhorn train --preset long-204k --seq-len 4096 --device cpu --steps 2\n"
              "  sinkhorn train --preset shakespeare --dim 256 --print-config > my.toml\n"
              "  sinkhorn train --config my.toml --learning-rate 5e-4");
  sub->callback([options, flags, &command] {
    command = [options, flags] {
      options->flags = flags->given();
      return train(*options);
    };
  });
}

/// A command whose options are a table of fields.
template <class Options>
void add_table_command(CLI::App& app, Command& command, const std::string& name, const std::string& purpose,
                       const std::string& examples, int (*run)(const Options&, std::ostream&)) {
  auto* sub = app.add_subcommand(name, purpose);
  auto flags = std::make_shared<FieldFlags>();
  Options defaults;
  flags->add(*sub, fields(defaults), "Options", /*show_defaults=*/true);
  sub->footer("Examples:\n" + examples);
  sub->callback([flags, run, name, &command] {
    command = [flags, run, name] {
      Options options;
      const Fields table = fields(options);
      for (const auto& [option, text] : flags->given()) {
        const Field& field = *find_field(table, option);
        assign(field, parse_value(field, text, flag_of(option)), flag_of(option));
      }
      check_ranges(table, name);
      return run(options, std::cout);
    };
  });
}

void add_eval(CLI::App& app, Command& command) {
  add_table_command<EvalOptions>(app, command, "eval", "Say how well a checkpoint predicts a text, or does its task",
                                 "  sinkhorn eval --checkpoint runs/cpu-small\n"
                                 "  sinkhorn eval --checkpoint runs/book/best.safetensors --data other.txt --whole",
                                 evaluate_checkpoint);
}

void add_generate(CLI::App& app, Command& command) {
  add_table_command<GenerateOptions>(app, command, "generate", "Print text from a checkpoint, as it is drawn",
                                     "  sinkhorn generate --checkpoint runs/cpu-small --prompt 'The '\n"
                                     "  sinkhorn generate --checkpoint runs/cpu-small --temperature 0.5 --samples 3\n"
                                     "  cat letter.txt | sinkhorn generate --checkpoint runs/book --prompt-file -",
                                     generate_text);
}

void add_leak_check(CLI::App& app, Command& command) {
  std::string leaks = "Planted leaks:\n";
  for (const Plant& plant : plants())
    leaks += "  " + plant.name + std::string(22 - plant.name.size(), ' ') + plant.purpose + "\n";
  add_table_command<LeakCheckOptions>(
      app, command, "leak-check", "Change later tokens, and show which earlier outputs move; none should",
      "  sinkhorn leak-check\n"
      "  sinkhorn leak-check --checkpoint runs/cpu-small --dtype bf16 --trials 64\n"
      "  sinkhorn leak-check --preset shakespeare --seq-len 512 --plant local-positions-bf16\n\n" +
          leaks + "\nExit codes: 0 nothing moved, 1 a leak was found.",
      leak_check);
}

void add_sort_view(CLI::App& app, Command& command) {
  add_table_command<SortViewOptions>(
      app, command, "sort-view", "Show how Sinkhorn iterations make a sorting matrix of scores",
      "  sinkhorn sort-view                               on a terminal: arrows move through the iterations\n"
      "  sinkhorn sort-view --buckets 8 --noise --temperature 0.3\n"
      "  sinkhorn sort-view --scores matrix.txt --html sort.html\n"
      "  sinkhorn sort-view --checkpoint runs/cpu-small --prompt 'The quick brown fox' --layer 1\n"
      "  sinkhorn sort-view --iteration 5 --json -\n\n"
      "Keys:\n"
      "  left/right or h/l  iteration        n  new noise          [ ]  head\n"
      "  + -                temperature      N  noise on and off   { }  layer\n"
      "  s                  save as SVG      c  causal mask        ?    help, q quits\n\n"
      "Iteration k is what the model's own op computes with k iterations: every row divided by its sum, then every\n"
      "column. Heads that route by top-k (all causal ones) show their scores, their picks and the weights of those.",
      sort_view);
}

void add_tape(CLI::App& app, Command& command) {
  std::string examples = "Models to walk through:\n";
  for (const TapeExample& example : tape_examples())
    examples += "  " + example.name + std::string(20 - example.name.size(), ' ') + example.purpose + "\n";
  add_table_command<TapeOptions>(
      app, command, "tape", "Step forward and backward through a small model, node by node",
      "  sinkhorn tape                                    on a terminal: Enter is the next step\n"
      "  sinkhorn tape --example softmax-attention --all\n"
      "  sinkhorn tape --example sinkhorn-layer --svg tape.svg\n"
      "  sinkhorn tape --example perceptron --dot - | dot -Tpng -o tape.png\n\n" +
          examples +
          "\nKeys:\n"
          "  Enter, space  next step           f        run forward to its end\n"
          "  b             the step before     digits   and Enter: to that node\n"
          "  Home, End     first, last step    q        quit\n\n"
          "Of each step it shows the value, what is kept for backward and its bytes; on the way back the gradient "
          "that\n"
          "arrives, what flows on to each input, and how the memory falls.",
      tape_command);
}

void add_import(CLI::App& app, Command& command) {
  auto* sub = app.add_subcommand("import", "Make a checkpoint of weights of the PyTorch package sinkhorn_transformer");
  auto options = std::make_shared<ImportOptions>();
  sub->add_option("FILE", options->file, "the model's state_dict as a safetensors file");
  sub->add_option("--config", options->config, "TOML file: its table [model] has the options of the PyTorch model")
      ->type_name("FILE");
  sub->add_option("-o,--out", options->out, "folder for the checkpoint, new or empty")->type_name("FOLDER");
  sub->add_option("--vocabulary", options->vocabulary, "tokens are bytes; the default where num_tokens is 256")
      ->type_name("")
      ->check(CLI::IsMember({"byte"}));
  sub->add_option("--symbols", options->symbols, "UTF-8 text file: the tokens' characters, in the order of their ids")
      ->type_name("FILE");
  sub->add_option("--prefix", options->prefix, "what stands before the package's names; default what the file shows")
      ->type_name("TEXT");
  sub->add_option("--seed", options->seed, "of the numbers that the file lacks (see 'appended')")
      ->type_name("N")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  sub->footer(
      "Prints what became of every tensor, and which corrected defects of the package change what the model computes.\n"
      "\nExamples:\n"
      "  python3 -c 'import torch, safetensors.torch as s; s.save_file({k: v.clone() for k, v in\n"
      "              torch.load(\"model.pt\").items()}, \"model.safetensors\")'\n"
      "  sinkhorn import model.safetensors --config model.toml -o runs/imported\n"
      "  sinkhorn import model.safetensors --config model.toml --symbols alphabet.txt -o runs/imported\n"
      "  sinkhorn generate --checkpoint runs/imported --prompt 'The '");
  sub->callback([options, &command] { command = [options] { return import_weights(*options, std::cout); }; });
}

void add_export(CLI::App& app, Command& command) {
  auto* sub = app.add_subcommand("export", "Write a checkpoint's weights under the names of the PyTorch package");
  auto options = std::make_shared<ExportOptions>();
  sub->add_option("CHECKPOINT", options->checkpoint, "checkpoint file, or a run's folder, whose best one is taken");
  sub->add_option("-o,--out", options->out, "safetensors file to write; it must not exist")->type_name("FILE");
  sub->add_option("--prefix", options->prefix, "text to put before every name, such as net.net.")->type_name("TEXT");
  sub->footer(
      "Examples:\n  sinkhorn export runs/book -o book.safetensors\n"
      "  python3 -c 'import safetensors.torch as s; print(s.load_file(\"book.safetensors\").keys())'");
  sub->callback([options, &command] { command = [options] { return export_weights(*options, std::cout); }; });
}

void add_parity(CLI::App& app, Command& command) {
  auto* sub =
      app.add_subcommand("parity", "Compare the model with the numbers of an independent implementation, in f64");
  auto options = std::make_shared<ParityOptions>();
  sub->add_option("PATH", options->paths, "reference files (.safetensors), or folders of them");
  sub->add_option("--tolerance", options->tolerance, "largest relative error")
      ->type_name("X")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  sub->add_option("--device", options->device, "where to compute")
      ->type_name("auto|cpu|cuda")
      ->check(CLI::IsMember({"auto", "cpu", "cuda"}));
  sub->footer("Examples:\n  sinkhorn parity fixtures/\n  sinkhorn parity lm_causal.safetensors --tolerance 1e-9");
  sub->callback([options, &command] { command = [options] { return parity(*options, std::cout); }; });
}

void add_doctor(CLI::App& app, Command& command) {
  auto* sub = app.add_subcommand("doctor", "Say what this build and this machine offer, and what is missing");
  sub->footer("Examples:\n  sinkhorn doctor");
  sub->callback([&command] { command = [] { return doctor(std::cout); }; });
}

void add_gradcheck(CLI::App& app, Command& command) {
  auto* sub = app.add_subcommand("gradcheck", "Check every op's gradient against numeric differences");
  auto options = std::make_shared<GradcheckOptions>();
  sub->add_option("--op", options->op, "check this op alone")->type_name("NAME");
  sub->add_flag("--json", options->json, "print a list of objects");
  sub->add_option("--device", options->device, "where to compute")
      ->type_name("auto|cpu|cuda")
      ->check(CLI::IsMember({"auto", "cpu", "cuda"}));
  sub->add_option("--plant", options->plant, "check a gradient that is wrong on purpose, to see what is said of it")
      ->type_name("NAME");
  std::string wrong = "Planted gradients:\n";
  for (const PlantedGradient& planted : planted_gradients())
    wrong += "  " + planted.name + std::string(14 - planted.name.size(), ' ') + planted.purpose + "\n";
  sub->footer(
      "Of a gradient that disagrees it shows the elements and the likely cause.\n"
      "\nExamples:\n  sinkhorn gradcheck\n  sinkhorn gradcheck --op softmax\n"
      "  sinkhorn gradcheck --plant missing-sum\n\n" +
      wrong + "\nExit codes: 0 all agree, 1 one disagrees.");
  sub->callback([options, &command] { command = [options] { return gradcheck(*options, std::cout); }; });
}

void add_bench(CLI::App& app, Command& command) {
  auto* sub = app.add_subcommand("bench", "Measure the speed and the memory of training and generation");
  auto options = std::make_shared<BenchOptions>();
  sub->add_option("--case", options->cases, "run this one, or all of NAME-...; may be given again")
      ->type_name("NAME")
      ->allow_extra_args(false);
  sub->add_flag("--list", options->list, "name the cases and stop");
  sub->add_flag("--suite", options->suite, "print Markdown: device, date, commit, and what others reach at the cases");
  sub->add_option("--into", options->into,
                  "a page that has <!-- bench --> and <!-- /bench -->: the Markdown goes between")
      ->type_name("FILE");
  sub->add_option("--json", options->json, "write all figures and samples to this file; - prints them alone")
      ->type_name("FILE");
  sub->add_option("--compare", options->compare, "the JSON of an earlier run: adds how many times faster this one is")
      ->type_name("FILE");
  sub->add_option("--steps", options->steps, "timed steps of a case")
      ->type_name("N")
      ->check(CLI::Range(1, 1000000))
      ->capture_default_str();
  sub->add_option("--precision", options->precision, "in place of each case's own")
      ->type_name("f32|tf32|bf16")
      ->check(CLI::IsMember({"f32", "tf32", "bf16"}));
  sub->add_option("--device", options->device, "whose cases to run")
      ->type_name("auto|cpu|cuda")
      ->check(CLI::IsMember({"auto", "cpu", "cuda"}));
  sub->add_option("--threads", options->threads, "of the CPU; 0 takes all cores")
      ->type_name("N")
      ->check(CLI::Range(0, 1024));
  sub->footer(
      "Before a case is timed, a small model of its kind must agree with the CPU in f64. A GPU is timed by events.\n"
      "MFU counts the operations that a step needs, HFU also what is computed again (tools/flops.h), over 989 TFLOP/s\n"
      "on an H100, elsewhere over the measured speed of matrix products.\n"
      "\nExamples:\n"
      "  sinkhorn bench --list\n"
      "  sinkhorn bench --case cpu --threads 2 --json before.json\n"
      "  sinkhorn bench --case cpu --threads 2 --compare before.json\n"
      "  sinkhorn bench --case E-B4 --case generation --steps 20\n"
      "  sinkhorn bench --suite > speed.md\n"
      "  sinkhorn bench --into README.md\n"
      "\nExit codes: 0 measured, 1 the numbers of a case were wrong, 2 usage, 3 files, 6 a case needs a GPU;\n"
      "            4 out of memory, 5 not finite: if that was the only case");
  sub->callback([options, &command] { command = [options] { return bench(*options, std::cout, std::cerr); }; });
}

/// `lesson` has commands of its own, which share one set of options.
void add_lesson(CLI::App& app, Command& command) {
  auto* lesson = app.add_subcommand("lesson", "The course: from one derivative to a trained Sinkhorn transformer");
  lesson->callback([lesson] {
    if (lesson->get_subcommands().empty() && lesson->remaining().empty())
      fail<UsageError>("lesson: a command is required; sinkhorn lesson --help lists them");
  });
  auto options = std::make_shared<LessonOptions>();
  const auto add = [&](const char* name, const char* purpose, int (*run)(const LessonOptions&, std::ostream&)) {
    auto* sub = lesson->add_subcommand(name, purpose);
    sub->callback([options, run, &command] { command = [options, run] { return run(*options, std::cout); }; });
    return sub;
  };
  const auto in_folder = [&](CLI::App* sub) {
    sub->add_option("--dir", options->dir, "the folder with your exercises")
        ->type_name("FOLDER")
        ->capture_default_str();
    return sub;
  };
  const auto of_lesson = [&](CLI::App* sub, const char* meaning = "number or name; default the first not solved") {
    sub->add_option("LESSON", options->lesson, meaning);
    return in_folder(sub);
  };
  const auto seeded = [&](CLI::App* sub, const char* meaning) {
    sub->add_option("--seed", options->seed, meaning)->type_name("N")->check(CLI::PositiveNumber);
  };
  add("init", "Make a folder with all exercises", lesson_init)
      ->add_option("FOLDER", options->init_dir, "new, or one that lacks exercises")
      ->capture_default_str();
  auto* list = in_folder(add("list", "Every lesson with its state", lesson_list));
  list->add_option("--search", options->search, "only lessons whose text holds this")->type_name("TEXT");
  list->add_flag("--json", options->json, "a list of objects: number, name, title, summary, state, file");
  in_folder(add("next", "The first lesson that is not solved, and what to do", lesson_next));
  of_lesson(add("show", "Read a walk-through, step by step", lesson_show))
      ->add_flag("--all", options->all, "all steps at once");
  of_lesson(add("hint", "One hint more: a nudge, the formula, the shape of the code", lesson_hint))
      ->add_option("--level", options->level, "this one")
      ->type_name("1|2|3")
      ->check(CLI::Range(1, 3));
  auto* verify = of_lesson(add("verify", "Compile your exercise and run its checks", lesson_verify));
  verify->add_flag("--all", options->all, "every lesson, a line each");
  seeded(verify, "of the random inputs");
  auto* watch = in_folder(add("watch", "Verify every exercise that you save, until Ctrl-C", lesson_watch));
  watch->add_flag("--poll", options->poll, "look at the files instead of being told (network and container mounts)");
  watch->add_option("--times", options->times, "leave after so many verifications")
      ->type_name("N")
      ->check(CLI::PositiveNumber);
  of_lesson(add("reset", "Put an exercise back as it was; what you wrote is kept", lesson_reset), "number or name");
  of_lesson(add("solution", "The solution, after success or a yes", lesson_solution))
      ->add_flag("--yes", options->yes, "before success, too");
  seeded(of_lesson(add("quiz", "Questions with computed answers", lesson_quiz)), "of the numbers; default new ones");
  in_folder(add("status", "How far you are", lesson_status));
  lesson->footer(
      "Examples:\n"
      "  sinkhorn lesson init\n"
      "  sinkhorn lesson next\n"
      "  sinkhorn lesson show 1\n"
      "  sinkhorn lesson watch\n"
      "\nExit codes: 0 solved or shown, 1 not solved yet or a wrong answer in a quiz, 2 usage, 3 files");
}

/// "sinkhorn lesson verify".
std::string full_name(const CLI::App& app) {
  return app.get_parent() ? full_name(*app.get_parent()) + " " + app.get_name() : app.get_name();
}

/// The first word that no option or command took, with the nearest one that exists.
[[noreturn]] void refuse_word(const CLI::App& app, const std::string& word) {
  std::vector<std::string> known;
  for (const auto* option : app.get_options())
    for (const auto& name : option->get_lnames()) known.push_back("--" + name);
  for (const auto* sub : app.get_subcommands({})) known.push_back(sub->get_name());
  const bool flag = word.starts_with("-"), is_group = !app.get_subcommands({}).empty();
  const std::string bare = word.substr(0, word.find('=')), near = nearest(bare, known);
  fail<UsageError>("unknown ",
                   flag       ? "flag "
                   : is_group ? "command "
                              : "argument ",
                   to_text(bare), near.empty() ? "" : "; did you mean " + near + "?",
                   "  (" + full_name(app) + " --help lists them)");
}

int parse_and_run(std::vector<std::string> arguments) {
  CLI::App app("A from-scratch autograd and the Sparse Sinkhorn Transformer.", "sinkhorn");
  app.formatter(std::make_shared<HelpFormatter>());
  app.set_version_flag("--version", "sinkhorn " + std::string(build_info::version));
  app.footer(
      "Examples:\n"
      "  sinkhorn train                     a character model of English prose, in minutes\n"
      "  sinkhorn train --help              its options\n"
      "  sinkhorn generate --checkpoint runs/cpu-small --prompt 'The '\n"
      "  sinkhorn lesson list               the course, from one derivative to this model\n"
      "\nExit codes: 0 ok, 1 a check failed or internal error, 2 usage, 3 data, checkpoint or output folder,\n"
      "            4 out of memory, 5 non-finite loss or gradient, 6 device, 130 interrupted");
  Command command;
  add_train(app, command);
  add_eval(app, command);
  add_generate(app, command);
  add_import(app, command);
  add_export(app, command);
  add_gradcheck(app, command);
  add_parity(app, command);
  add_leak_check(app, command);
  add_sort_view(app, command);
  add_tape(app, command);
  add_bench(app, command);
  add_doctor(app, command);
  add_lesson(app, command);
  // Unknown words are collected, not refused by the library, so that the message can name the nearest known one.
  app.allow_extras();
  const std::function<void(CLI::App*)> collect = [&](CLI::App* sub) {
    sub->allow_extras();
    for (auto* inner : sub->get_subcommands({})) collect(inner);
  };
  for (auto* sub : app.get_subcommands({})) collect(sub);

  try {
    std::reverse(arguments.begin(), arguments.end());  // the library wants them so
    app.parse(arguments);
  } catch (const CLI::Success& help_or_version) {
    return app.exit(help_or_version, std::cout, std::cerr);
  } catch (const CLI::ParseError& error) {
    throw UsageError(error.what());
  }
  if (const auto words = app.remaining(); !words.empty()) refuse_word(app, words.front());
  const std::function<void(const CLI::App&)> refuse = [&](const CLI::App& sub) {
    for (const auto* inner : sub.get_subcommands()) refuse(*inner);
    if (const auto words = sub.remaining(); !words.empty()) refuse_word(sub, words.front());
  };
  for (const auto* sub : app.get_subcommands()) refuse(*sub);
  if (!command) fail<UsageError>("a command is required; sinkhorn --help lists them");
  return command();
}

}  // namespace

Failure describe_failure(const std::exception_ptr& error) {
  Failure failure{1, "unknown error"};
  try {
    std::rethrow_exception(error);
  } catch (const UsageError& e) {
    failure = {2, e.what()};
  } catch (const DataError& e) {
    failure = {3, e.what()};
  } catch (const OutOfMemory& e) {
    failure = {4, e.what()};
  } catch (const std::bad_alloc&) {
    failure = {4, "out of memory; lower the batch size, the sequence length or the model's width"};
  } catch (const NonFinite& e) {
    failure = {5, e.what()};
  } catch (const DeviceError& e) {
    failure = {6, e.what()};
  } catch (const std::exception& e) {
    failure.line = e.what();
  } catch (...) {
  }
  std::string line;
  for (const char c : failure.line) {
    if (c == '\n')
      line += "; ";
    else if (static_cast<unsigned char>(c) < 0x20 || c == 0x7F)
      line += '?';  // what users pass is echoed: no escape codes
    else
      line += c;
  }
  failure.line = line;
  return failure;
}

int run(const std::vector<std::string>& arguments) {
  int code = 0;
  try {
    code = parse_and_run(arguments);
  } catch (...) {
    const Failure failure = describe_failure(std::current_exception());
    std::cout.flush();
    std::cerr << "sinkhorn: " << failure.line << std::endl;
    return failure.exit_code;
  }
  errno = 0;
  std::cout.flush();
  if (!std::cout && errno != 0 && errno != EPIPE) {
    std::cerr << "sinkhorn: standard output cannot be written: " << std::strerror(errno) << std::endl;
    return code == 0 ? 3 : code;
  }
  return code;
}

}  // namespace sinkhorn
