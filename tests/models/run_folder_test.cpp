// Checkpoints against failing disks, power loss, kill -9, damaged files and wrong folders.
#include "models/run_folder.h"

#include <gtest/gtest.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <cstring>
#include <fstream>
#include <random>

#include "autograd/error.h"
#include "tests/models/model_disk.h"
#include "tests/shared.h"

namespace sinkhorn {
namespace {

namespace fs = std::filesystem;
using sinkhorn::testing::ModelDisk;
using sinkhorn::testing::TemporaryFolder;

/// Tensors that only this step has.
struct Content {
  explicit Content(std::int64_t step, std::size_t size = 40) : weights(size), counts(size / 8) {
    std::mt19937_64 random(static_cast<std::uint64_t>(step));
    for (float& weight : weights) weight = static_cast<float>(random() % 1000);
    for (std::int64_t& count : counts) count = static_cast<std::int64_t>(random());
  }
  std::vector<safetensors::Item> items() const {
    return {{"weights",
             safetensors::Type::F32,
             {static_cast<std::int64_t>(weights.size())},
             std::as_bytes(std::span(weights))},
            {"counts",
             safetensors::Type::I64,
             {static_cast<std::int64_t>(counts.size())},
             std::as_bytes(std::span(counts))}};
  }
  bool equals(const safetensors::File& file) const {
    return as_f32(file, file.require("weights")) == weights && as_i64(file, file.require("counts")) == counts;
  }
  std::vector<float> weights;
  std::vector<std::int64_t> counts;
};

void save(RunFolder& run, std::int64_t step) { run.save(step, {{"config", "dim = 16"}}, Content(step).items()); }
void save_best(RunFolder& run, std::int64_t step) {
  run.save_best(step, {{"config", "dim = 16"}}, Content(step).items());
}

std::vector<std::string> names_in(const fs::path& folder, FileSystem& files = system_files()) {
  std::vector<std::string> names;
  files.list(folder.string(), names);
  std::sort(names.begin(), names.end());
  std::erase_if(names, [](const std::string& name) { return name == "." || name == ".."; });
  return names;
}

/// The message of the DataError that `act` must throw: one line.
template <class Act>
std::string data_error(Act act) {
  try {
    act();
  } catch (const DataError& error) {
    EXPECT_EQ(std::string(error.what()).find('\n'), std::string::npos);
    return error.what();
  }
  ADD_FAILURE() << "no DataError";
  return "";
}

#define EXPECT_CONTAINS(text, part) EXPECT_NE(std::string(text).find(part), std::string::npos) << (text)

TEST(RunFolder, SavesAndFindsTheNewest) {
  TemporaryFolder place;
  const fs::path folder = place.path / "runs" / "a";
  RunFolder run(folder);
  EXPECT_FALSE(run.newest().checkpoint);
  for (const std::int64_t step : {0, 200, 999'999, 1'000'000}) save(run, step);
  save_best(run, 200);
  EXPECT_EQ(names_in(folder), (std::vector<std::string>{".lock", "best.safetensors", "step-1000000.safetensors",
                                                        "step-999999.safetensors"}));
  const NewestCheckpoint found = run.newest();
  ASSERT_TRUE(found.checkpoint);
  EXPECT_TRUE(found.skipped.empty());
  EXPECT_EQ(found.checkpoint->step, 1'000'000);
  EXPECT_EQ(found.checkpoint->path, folder / "step-1000000.safetensors");
  EXPECT_EQ(found.checkpoint->file.metadata.at("step"), "1000000");
  EXPECT_EQ(found.checkpoint->file.metadata.at("config"), "dim = 16");
  EXPECT_TRUE(Content(1'000'000).equals(found.checkpoint->file));
  EXPECT_TRUE(Content(200).equals(read_checkpoint(folder / RunFolder::best_name)));
  EXPECT_THROW(save(run, -1), Error);
  EXPECT_EQ(RunFolder::step_name(600), "step-000600.safetensors");
}

TEST(RunFolder, PassesOverDamagedCheckpointsAndSaysWhy) {
  TemporaryFolder place;
  {
    RunFolder run(place.path);
    for (const std::int64_t step : {10, 20}) save(run, step);
  }
  fs::copy_file(place.path / "step-000020.safetensors", place.path / "step-000030.safetensors");
  fs::copy_file(place.path / "step-000020.safetensors", place.path / "step-000040.safetensors");
  fs::resize_file(place.path / "step-000030.safetensors", 100);
  {
    std::fstream file(place.path / "step-000040.safetensors", std::ios::in | std::ios::out | std::ios::binary);
    file.seekp(-1, std::ios::end);
    file.put('\x7F');
  }
  for (const char* other :
       {"step-50.safetensors", "step-000060.safetensors.bak", "step-.safetensors", "step-0000x0.safetensors"})
    std::ofstream(place.path / other) << "not a checkpoint's name";

  RunFolder run(place.path);
  const NewestCheckpoint found = run.newest();
  ASSERT_TRUE(found.checkpoint);
  EXPECT_EQ(found.checkpoint->step, 20);
  ASSERT_EQ(found.skipped.size(), 2u);
  EXPECT_CONTAINS(found.skipped[0], "step-000040.safetensors: tensor 'weights' does not match its digest");
  EXPECT_CONTAINS(found.skipped[1], "step-000030.safetensors: the header's length is given as");
  EXPECT_EQ(newest_checkpoint(place.path).skipped, found.skipped);

  // Training goes on from 20. The damaged ones count for nothing: 20 must outlive the next save, and 10 need not.
  save(run, 50);
  EXPECT_FALSE(fs::exists(place.path / "step-000010.safetensors"));
  EXPECT_TRUE(fs::exists(place.path / "step-000020.safetensors"));
  // Once written anew, they count.
  save(run, 30);
  save(run, 40);
  EXPECT_FALSE(fs::exists(place.path / "step-000020.safetensors"));
  EXPECT_TRUE(run.newest().skipped.empty());
  EXPECT_EQ(run.newest().checkpoint->step, 50);
}

TEST(RunFolder, SavingAnEarlierStepKeepsWhatItSaved) {
  TemporaryFolder place;
  RunFolder run(place.path);
  for (const std::int64_t step : {100, 200}) save(run, step);
  for (const std::int64_t step : {10, 20, 30}) save(run, step);
  EXPECT_EQ(names_in(place.path),
            (std::vector<std::string>{".lock", "step-000020.safetensors", "step-000030.safetensors",
                                      "step-000100.safetensors", "step-000200.safetensors"}));
}

TEST(RunFolder, RemovesOnlyItsOwnStaleTemporaries) {
  TemporaryFolder place;
  const std::vector<std::string> stale = {".step-000010.safetensors.123-4.tmp", ".best.safetensors.1-0.tmp"};
  const std::vector<std::string> others = {".notes.tmp", ".step-000010.safetensors.tmp", ".x.safetensors.-4.tmp",
                                           "draft.safetensors.1-2.tmp", "log.jsonl"};
  for (const auto& names : {stale, others})
    for (const std::string& name : names) std::ofstream(place.path / name) << "x";
  RunFolder run(place.path);
  for (const std::string& name : stale) EXPECT_FALSE(fs::exists(place.path / name)) << name;
  for (const std::string& name : others) EXPECT_TRUE(fs::exists(place.path / name)) << name;
}

TEST(RunFolder, ASecondProcessIsRefusedUntilTheFirstEnds) {
  TemporaryFolder place;
  int ready[2], done[2];
  ASSERT_EQ(pipe(ready), 0);
  ASSERT_EQ(pipe(done), 0);
  const pid_t holder = fork();
  if (holder == 0) {
    RunFolder run(place.path);
    char byte = 1;
    if (write(ready[1], &byte, 1) == 1) (void)!read(done[0], &byte, 1);
    _exit(0);
  }
  char byte = 0;
  ASSERT_EQ(read(ready[0], &byte, 1), 1);
  const std::string message = data_error([&] { RunFolder second(place.path); });
  EXPECT_CONTAINS(message, "is in use by process " + std::to_string(holder) + ":");
  EXPECT_FALSE(newest_checkpoint(place.path).checkpoint);  // reading needs no lock
  kill(holder, SIGKILL);
  waitpid(holder, nullptr, 0);
  RunFolder third(place.path);
  EXPECT_CONTAINS(data_error([&] { RunFolder fourth(place.path); }), "process " + std::to_string(getpid()) + ":");
  for (const int end : {ready[0], ready[1], done[0], done[1]}) close(end);
}

/// File permissions do not bind the superuser, so for its lifetime the superuser becomes nobody.
class AsOrdinaryUser {
 public:
  AsOrdinaryUser() { changed_ = geteuid() == 0 && seteuid(65534) == 0; }
  ~AsOrdinaryUser() {
    if (changed_ && seteuid(0) != 0) std::abort();
  }

 private:
  bool changed_ = false;
};

TEST(RunFolder, WrongFoldersAreOneClearLine) {
  TemporaryFolder place;
  std::ofstream(place.path / "file") << "x";
  fs::create_directory(place.path / "closed");
  fs::permissions(place.path / "closed",
                  fs::perms::owner_read | fs::perms::owner_exec | fs::perms::others_read | fs::perms::others_exec);
  fs::permissions(place.path, fs::perms::owner_all | fs::perms::others_read | fs::perms::others_exec);
  fs::create_symlink(place.path / "nowhere", place.path / "dangling");
  const auto message = [](const fs::path& folder) { return data_error([&] { RunFolder run(folder); }); };
  EXPECT_CONTAINS(message(place.path / "file"), "a file stands where a folder is needed");
  EXPECT_CONTAINS(message(place.path / "file" / "runs"), "a file stands where a folder is needed");
  EXPECT_CONTAINS(message(place.path / "dangling"), "No such file or directory");
  EXPECT_CONTAINS(message(""), "No such file or directory");
  EXPECT_CONTAINS(message("/proc/no/such"), "cannot create folder /proc/no");
  EXPECT_CONTAINS(data_error([&] { newest_checkpoint(place.path / "absent"); }), "cannot list the folder");
  {
    AsOrdinaryUser user;
    EXPECT_CONTAINS(message(place.path / "closed"), "Permission denied; make it accessible to this user");
    EXPECT_CONTAINS(message(place.path / "closed" / "a" / "b"), "Permission denied; make it accessible to this user");
  }
  EXPECT_TRUE(fs::is_empty(place.path / "closed"));
}

TEST(RunFolder, WorksBelowAFolderThatCannotBeRead) {
  TemporaryFolder place;
  const fs::path shut = place.path / "shut";
  fs::create_directories(shut / "run");
  fs::permissions(shut / "run", fs::perms::all);
  fs::permissions(place.path, fs::perms::all);
  fs::permissions(shut, fs::perms::owner_exec | fs::perms::group_exec | fs::perms::others_exec);
  {
    AsOrdinaryUser user;
    RunFolder run(shut / "run" / "");
    save(run, 1);
    EXPECT_EQ(run.newest().checkpoint->step, 1);
  }
  fs::permissions(shut, fs::perms::all);
}

TEST(RunFolder, AFileTooLargeForTheDiskLeavesTheFormerOne) {
  TemporaryFolder place;
  {
    RunFolder run(place.path);
    save(run, 1);
    save_best(run, 1);
  }
  const auto before = names_in(place.path);
  const pid_t child = fork();
  if (child == 0) {  // the limits are those of a process, and the signal's default ends it
    signal(SIGXFSZ, SIG_IGN);
    const rlimit limit = {2000, 2000};
    setrlimit(RLIMIT_FSIZE, &limit);
    int refused = 0;
    try {
      RunFolder run(place.path);
      const Content large(2, 4000);
      try {
        run.save(2, {}, large.items());
      } catch (const DataError& error) {
        refused += std::strstr(error.what(), "File too large; free some space") != nullptr;
      }
      try {
        run.save_best(2, {}, large.items());
      } catch (const DataError&) {
        ++refused;
      }
    } catch (...) {
    }
    _exit(refused);
  }
  int status = 0;
  waitpid(child, &status, 0);
  EXPECT_TRUE(WIFEXITED(status));
  EXPECT_EQ(WEXITSTATUS(status), 2);
  EXPECT_EQ(names_in(place.path), before);
  EXPECT_TRUE(Content(1).equals(newest_checkpoint(place.path).checkpoint->file));
  EXPECT_TRUE(Content(1).equals(read_checkpoint(place.path / RunFolder::best_name)));
}

const fs::path model_run = "/home/runs/a";

/// What was promised so far: the steps whose save returned.
struct Promised {
  std::int64_t step = 0, best = 0;
};

/// What is wrong with the checkpoints on `disk`, given what was promised; "" if nothing is. Leaves the disk as a new
/// run finds it.
std::string broken(ModelDisk& disk, const Promised& promised, std::int64_t tried) {
  RunFolder run(model_run, disk);
  for (const std::string& name : names_in(model_run, disk))
    if (name.ends_with(".tmp")) return "temporary " + name + " left";
  const NewestCheckpoint found = run.newest();
  if (!found.skipped.empty()) return "half a file under a final name: " + found.skipped[0];
  const std::int64_t step = found.checkpoint ? found.checkpoint->step : 0;
  if (step < promised.step) return "found step " + std::to_string(step) + " after " + std::to_string(promised.step);
  if (step > tried) return "found step " + std::to_string(step) + ", which nobody saved";
  if (step > 0 && !Content(step).equals(found.checkpoint->file))
    return "step " + std::to_string(step) + " holds something else";
  if (promised.best > 0) {
    const safetensors::File best = read_checkpoint(model_run / RunFolder::best_name, disk);
    const std::int64_t best_step = std::stoll(best.metadata.at("step"));
    if (best_step < promised.best || !Content(best_step).equals(best))
      return "best is step " + std::to_string(best_step);
  }
  save(run, step + 1);
  if (run.newest().checkpoint->step != step + 1) return "cannot go on";
  return "";
}

struct PowerLosses {
  int states = 0, broken = 0;
  std::string first;
};

/// Trains on `disk` and cuts the power `draws` times before every call, each time with another outcome.
PowerLosses lose_power(ModelDisk& disk, int draws, std::uint64_t seed) {
  std::mt19937_64 random(seed);
  PowerLosses losses;
  Promised promised;
  std::int64_t tried = 0;
  disk.on_call = [&](const std::string& call) {
    for (int draw = 0; draw < draws; ++draw) {
      std::string wrong;
      try {
        wrong = broken(*disk.after_power_loss(random), promised, tried);
      } catch (const Error& error) {
        wrong = error.what();
      }
      ++losses.states;
      if (wrong.empty()) continue;
      if (++losses.broken == 1) losses.first = "before " + call + " in step " + std::to_string(tried) + ": " + wrong;
    }
    return 0;
  };
  RunFolder run(model_run, disk);
  while (tried < 7) {
    save(run, ++tried);
    promised.step = tried;
    if (tried % 3 != 0) continue;
    save_best(run, tried);
    promised.best = tried;
  }
  return losses;
}

TEST(PowerLoss, NeverLosesAnAcknowledgedCheckpoint) {
  ModelDisk disk;
  const PowerLosses losses = lose_power(disk, sinkhorn::testing::long_tests() ? 1000 : 100, 1);
  EXPECT_EQ(losses.broken, 0) << losses.first;
  EXPECT_GE(losses.states, 10'000);
  RecordProperty("states", losses.states);
}

TEST(PowerLoss, ADiskThatDoesNotSyncIsFoundOut) {
  ModelDisk no_files, no_folders;
  no_files.syncs_files = false;
  no_folders.syncs_folders = false;
  EXPECT_GT(lose_power(no_files, 5, 2).broken, 0);
  EXPECT_GT(lose_power(no_folders, 5, 3).broken, 0);
}

TEST(DiskFaults, NoStepOfASaveIsTakenOnTrust) {
  for (const std::string fails : {"open", "write", "fsync", "close", "rename"}) {
    bool failed = false;  // outlives the run, whose end still calls the disk
    ModelDisk disk;
    RunFolder run(model_run, disk);
    save(run, 1);
    disk.on_call = [&](const std::string& call) { return call == fails && !std::exchange(failed, true) ? EIO : 0; };
    EXPECT_CONTAINS(data_error([&] { save(run, 2); }), "step-000002.safetensors: Input/output error");
    EXPECT_EQ(names_in(model_run, disk), (std::vector<std::string>{".lock", "step-000001.safetensors"})) << fails;
    save(run, 2);
    EXPECT_EQ(run.newest().checkpoint->step, 2);
  }
}

TEST(DiskFaults, AnInterruptedCallIsRepeated) {
  ModelDisk disk;
  RunFolder run(model_run, disk);
  for (const std::string interrupted : {"write", "read"}) {
    bool done = false;
    disk.on_call = [&](const std::string& call) {
      return call == interrupted && !std::exchange(done, true) ? EINTR : 0;
    };
    save(run, 1);
    EXPECT_TRUE(Content(1).equals(run.newest().checkpoint->file)) << interrupted;
    EXPECT_TRUE(done);
    disk.on_call = [](const std::string&) {
      return 0;
    };  // it refers to this turn's variables, and the run still closes its lock
  }
}

TEST(DiskFaults, AFaultAtAnyCallLosesNothing) {
  int faults = 0, refused_saves = 0;
  for (const bool stays : {false, true}) {
    for (const int number : {ENOSPC, EIO, EINTR}) {
      if (stays && number == EINTR) continue;  // no system interrupts for ever
      for (int k = 0;; ++k) {
        ModelDisk disk;
        Promised promised;
        std::int64_t tried = 2;
        {
          RunFolder run(model_run, disk);
          for (std::int64_t step = 1; step <= tried; ++step) save(run, promised.step = step);
          save_best(run, promised.best = 2);
        }
        int calls = 0;
        std::string failed;
        disk.on_call = [&](const std::string& call) {
          const bool fails = stays ? calls >= k : calls == k;
          if (fails && failed.empty()) failed = call;
          ++calls;
          return fails ? number : 0;
        };
        const auto attempt = [&](auto act) {
          try {
            act();
            return true;
          } catch (const DataError& error) {
            ++refused_saves;
            return false;
          }
        };
        attempt([&] {
          RunFolder run(model_run, disk);
          while (tried < 5) {
            ++tried;
            if (attempt([&] { save(run, tried); })) promised.step = tried;
            if (attempt([&] { save_best(run, tried); })) promised.best = tried;
          }
        });
        disk.on_call = [](const std::string&) { return 0; };
        if (failed.empty()) break;
        ++faults;
        const std::string where = failed + " number " + std::to_string(k) + " failing with " + std::to_string(number);
        if (!stays && failed != "unlink") {
          for (const std::string& name : names_in(model_run, disk))
            EXPECT_FALSE(name.ends_with(".tmp")) << where << " left " << name;
        }
        std::mt19937_64 random(static_cast<std::uint64_t>(k));
        for (int draw = 0; draw < 4; ++draw)
          EXPECT_EQ(broken(*disk.after_power_loss(random), promised, tried), "") << where << ", then the power";
        EXPECT_EQ(broken(disk, promised, tried), "") << where;
      }
    }
  }
  EXPECT_GT(faults, 300);
  EXPECT_GT(refused_saves, 100);
}

TEST(Kill, NineNeverLosesAnAcknowledgedCheckpoint) {
  TemporaryFolder place;
  std::mt19937_64 random(4);
  std::int64_t promised = 0;
  int interrupted = 0;
  const int trials = sinkhorn::testing::long_tests() ? 10'000 : 200;
  for (int trial = 0; trial < trials; ++trial) {
    int acknowledged[2];
    ASSERT_EQ(pipe(acknowledged), 0);
    const pid_t child = fork();
    if (child == 0) {
      try {
        RunFolder run(place.path);
        const NewestCheckpoint newest = run.newest();
        for (std::int64_t step = newest.checkpoint ? newest.checkpoint->step + 1 : 1;; ++step) {
          run.save(step, {}, Content(step, 20'000).items());
          if (write(acknowledged[1], &step, sizeof step) != sizeof step) break;
        }
      } catch (...) {
      }
      _exit(1);
    }
    ASSERT_GT(child, 0);
    close(acknowledged[1]);
    std::int64_t acknowledgement = 0;
    const auto receive = [&] { return read(acknowledged[0], &acknowledgement, sizeof acknowledgement) > 0; };
    // Half of the trials kill a trainer that is surely saving, the others also one that is just beginning.
    if (trial % 2 == 0 && receive()) promised = acknowledgement;
    usleep(static_cast<useconds_t>(random() % 8'000));
    kill(child, SIGKILL);
    int status = 0;
    waitpid(child, &status, 0);
    ASSERT_TRUE(WIFSIGNALED(status)) << "the trainer ended by itself in trial " << trial;
    while (receive()) promised = acknowledgement;
    close(acknowledged[0]);

    for (const std::string& name : names_in(place.path)) interrupted += name.ends_with(".tmp");
    RunFolder run(place.path);
    const NewestCheckpoint found = run.newest();
    ASSERT_TRUE(found.skipped.empty()) << found.skipped[0];
    const std::int64_t step = found.checkpoint ? found.checkpoint->step : 0;
    ASSERT_GE(step, promised) << "lost in trial " << trial;
    ASSERT_LE(step, promised + 1);
    if (step > 0) {
      ASSERT_TRUE(Content(step, 20'000).equals(found.checkpoint->file)) << "trial " << trial;
    }
    for (const std::string& name : names_in(place.path)) ASSERT_FALSE(name.ends_with(".tmp")) << name;
    promised = step;
  }
  EXPECT_GT(promised, 0);
  EXPECT_GT(interrupted, 0) << "no kill came while a file was being written, so the trials showed nothing";
  RecordProperty("steps", static_cast<int>(promised));
  RecordProperty("interrupted", interrupted);
}

}  // namespace
}  // namespace sinkhorn
