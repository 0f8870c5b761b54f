// The bootstrap script `run`, in a scratch checkout whose package tools, CMake and ninja are small stand-ins.
#include <gtest/gtest.h>
#include <sys/wait.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <string>

#include "build_info.h"

namespace {

namespace fs = std::filesystem;

struct Outcome {
  int status;
  std::string out, err;
};

std::string read(const fs::path& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

bool contains(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

class Run : public testing::Test {
 protected:
  void SetUp() override {
    std::string name = (fs::temp_directory_path() / "sinkhorn run test XXXXXX").string();  // a path with spaces
    ASSERT_NE(mkdtemp(name.data()), nullptr);
    root = name;
    fs::create_directories(root / "bin");
    fs::create_directories(root / "elsewhere");
    fs::copy_file(fs::path(sinkhorn::build_info::source_dir) / "run", root / "run");
    // Whether this machine has the default text must not matter.
    ASSERT_EQ(std::system(("sed -i 's|^installed_text=|&/no-such-folder|' '" + name + "/run'").c_str()), 0);
    fake("dpkg-query", "echo 'ii '");
    fake("apt-get", "echo \"$@\" >>\"$ROOT/apt.log\"; echo apt noise; [[ $* != *download* ]]");
    fake("id", "echo 0");
    fake("nvidia-smi", "exit 9");
    fake("cmake", R"(echo cmake noise
      echo "$@" >>"$ROOT/cmake.log"
      while (($#)); do [[ $1 == --preset ]] && preset=$2; shift; done
      mkdir -p "$ROOT/build/$preset"; touch "$ROOT/build/$preset/build.ninja"
      echo "CMAKE_HOME_DIRECTORY:INTERNAL=$ROOT" >"$ROOT/build/$preset/CMakeCache.txt")");
    fake("ninja", R"(echo 'ninja: Entering directory'
      [[ ! -e $2/sinkhorn ]] || { echo 'ninja: no work to do.'; exit; }
      echo '[1/2] ninja noise'
      [[ ! -e $ROOT/broken ]] || { echo 'model.cpp:1: error: no'; exit 1; }
      for program in sinkhorn sinkhorn_tests; do
        printf '#!/bin/bash\necho "%s in $PWD:" "$@" ${SINKHORN_JARGON#unused}\nexit ${STATUS:-0}\n' "$program" >"$2/$program"
        chmod +x "$2/$program"
      done)");
  }
  void TearDown() override { fs::remove_all(root); }

  void fake(const std::string& name, const std::string& body) {
    const fs::path path = root / "bin" / name;
    std::ofstream(path) << "#!/bin/bash\nROOT='" << root.string() << "'\n" << body << "\n";
    fs::permissions(path, fs::perms::owner_all);
  }

  /// Runs `program` from the folder `elsewhere` of the scratch checkout, with more environment variables if given.
  Outcome run(const std::string& arguments, const std::string& environment = "",
              const std::string& program = "../run") {
    const std::string base = root.string();
    const std::string command =
        "cd '" + base + "/elsewhere' && env -u SINKHORN_BUILD -u SINKHORN_WERROR SINKHORN_JARGON=unused PATH='" + base +
        "/bin':/usr/bin:/bin " + environment + " " + program + " " + arguments + " >'" + base + "/out' 2>'" + base +
        "/err' </dev/null";
    const int status = std::system(command.c_str());
    return {WIFEXITED(status) ? WEXITSTATUS(status) : -1, read(root / "out"), read(root / "err")};
  }

  fs::path root;
};

TEST_F(Run, KeepsTheFolderTheArgumentsAndTheStatus) {
  const Outcome got = run("train --steps '1 2' --no-install", "STATUS=7");
  EXPECT_EQ(got.status, 7);
  EXPECT_EQ(got.out, "sinkhorn in " + root.string() + "/elsewhere: train --steps 1 2 --no-install\n") << got.err;
}

TEST_F(Run, WorksThroughASymbolicLink) {
  fs::create_symlink("../run", root / "elsewhere" / "link");
  EXPECT_EQ(run("doctor", "", "./link").status, 0);
  EXPECT_TRUE(fs::exists(root / "build" / "cpu" / "sinkhorn"));
}

TEST_F(Run, ItsOwnOutputAndTheBuildsGoToStderr) {
  const Outcome got = run("doctor");
  EXPECT_FALSE(contains(got.out, "noise") || contains(got.out, "run:")) << got.out;
  EXPECT_TRUE(contains(got.err, "run: building build/cpu (sinkhorn)")) << got.err;
  EXPECT_FALSE(contains(got.err, "noise")) << "what works is quiet: " << got.err;
  EXPECT_EQ(run("doctor").err, "");
}

TEST_F(Run, HelpShowsItsOwnOptionsAndThenTheProgram) {
  const Outcome got = run("--help");
  EXPECT_EQ(got.status, 0);
  EXPECT_TRUE(contains(got.err, "--no-install")) << got.err;
  EXPECT_TRUE(contains(got.out, ": --help")) << got.out;
}

TEST_F(Run, ConfiguresOnceAndAfreshWhenTheCheckoutMoved) {
  run("doctor");
  run("doctor");
  EXPECT_FALSE(contains(read(root / "cmake.log"), "--fresh"));
  std::ofstream(root / "build/cpu/CMakeCache.txt") << "CMAKE_HOME_DIRECTORY:INTERNAL=/another/place\n";
  run("doctor");
  const std::string log = read(root / "cmake.log");
  EXPECT_EQ(std::count(log.begin(), log.end(), '\n'), 2) << log;
  EXPECT_TRUE(contains(log, "--fresh")) << log;
}

TEST_F(Run, WarningsAreErrorsOnlyOnRequest) {
  run("doctor");
  EXPECT_TRUE(contains(read(root / "cmake.log"), "-DSINKHORN_WERROR=OFF"));
  fs::remove_all(root / "build");
  run("doctor", "SINKHORN_WERROR=ON");
  EXPECT_TRUE(contains(read(root / "cmake.log"), "-DSINKHORN_WERROR=ON"));
}

TEST_F(Run, AFailedBuildIsShownAndStopsIt) {
  fake("../broken", "");
  const Outcome got = run("train");
  EXPECT_EQ(got.status, 1);
  EXPECT_EQ(got.out, "");
  EXPECT_TRUE(contains(got.err, "model.cpp:1: error: no") && contains(got.err, "run: the build failed")) << got.err;
  EXPECT_FALSE(contains(got.err, "noise")) << got.err;
}

TEST_F(Run, AnUnknownBuildIsAUsageError) {
  const Outcome got = run("train", "SINKHORN_BUILD=gpu");
  EXPECT_EQ(got.status, 2);
  EXPECT_EQ(got.err, "run: SINKHORN_BUILD is 'gpu'; it can be cpu or cuda\n");
  EXPECT_FALSE(fs::exists(root / "build"));
}

TEST_F(Run, TakesCudaOnlyWithNvccAndAGpu) {
  const auto preset = [&](const std::string& environment) {
    fs::remove_all(root / "build");
    run("doctor", environment);
    return std::string(fs::exists(root / "build/cpu") ? "cpu" : "") + (fs::exists(root / "build/cuda") ? "cuda" : "");
  };
  fake("nvcc", "true");
  EXPECT_EQ(preset(""), "cpu");
  fake("nvidia-smi", "echo 'GPU 0: something'");
  EXPECT_EQ(preset(""), "cuda");
  EXPECT_EQ(preset("SINKHORN_BUILD=cpu"), "cpu");
  fake("nvidia-smi", "exit 9");
  EXPECT_EQ(preset("SINKHORN_BUILD=cuda"), "cuda");
}

TEST_F(Run, NoInstallNamesWhatIsMissingAndInstallsNothing) {
  fake("dpkg-query", "[[ ${!#} == libfmt-dev ]] && exit 1; echo 'ii '");
  const Outcome got = run("--no-install train");
  EXPECT_EQ(got.status, 2);
  EXPECT_EQ(got.err, "run: missing: libfmt-dev (printing); install with: apt-get install libfmt-dev\n");
  EXPECT_FALSE(fs::exists(root / "apt.log"));
  EXPECT_FALSE(fs::exists(root / "build"));
}

TEST_F(Run, SaysWhatItInstallsAndWhy) {
  fake("dpkg-query", "[[ ${!#} == libfmt-dev || ${!#} == libopenblas-dev ]] && exit 1; echo 'ii '");
  const Outcome got = run("train");
  EXPECT_EQ(got.status, 0) << got.err;
  EXPECT_TRUE(contains(got.err, "libfmt-dev (printing), libopenblas-dev (fast matrix products)")) << got.err;
  EXPECT_FALSE(contains(got.out + got.err, "apt noise")) << got.err;
  const std::string log = read(root / "apt.log");
  EXPECT_TRUE(contains(log, "install libfmt-dev") && contains(log, "install libopenblas-dev")) << log;
  EXPECT_FALSE(contains(log, "zlib")) << log;
}

TEST_F(Run, WithoutRootItAsksSudo) {
  fake("dpkg-query", "[[ ${!#} == libfmt-dev ]] && exit 1; echo 'ii '");
  fake("id", "echo 1000");
  fake("sudo", "echo \"$@\" >>\"$ROOT/sudo.log\"; \"$@\"");
  EXPECT_EQ(run("train").status, 0);
  EXPECT_TRUE(contains(read(root / "sudo.log"), "install libfmt-dev"));
}

TEST_F(Run, AFailedInstallationIsShown) {
  fake("dpkg-query", "[[ ${!#} == libfmt-dev ]] && exit 1; echo 'ii '");
  fake("apt-get", "[[ $* == *update* ]] || { echo 'E: no such thing'; exit 100; }");
  const Outcome got = run("train");
  EXPECT_EQ(got.status, 1);
  EXPECT_TRUE(contains(got.err, "E: no such thing") && contains(got.err, "could not install libfmt-dev")) << got.err;
  EXPECT_FALSE(fs::exists(root / "build"));
}

TEST_F(Run, AMissingWishDoesNotStopIt) {
  fake("dpkg-query", "[[ ${!#} == libopenblas-dev ]] && exit 1; echo 'ii '");
  EXPECT_EQ(run("--no-install train").status, 0);
  fs::remove_all(root / "build");
  fake("apt-get", "exit 100");
  EXPECT_EQ(run("train").status, 0);
}

TEST_F(Run, UnpacksTheDefaultTextOnce) {
  const std::string place = "no-such-folder/usr/share/doc/jargon-text";
  fs::create_directories(root / "package" / place);
  std::ofstream(root / "package" / place / "jargon.txt.gz") << "words";
  fake("apt-get", "echo \"$@\" >>\"$ROOT/apt.log\"; touch jargon-text_1_all.deb");
  fake("dpkg-deb", "tar -C \"$ROOT/package\" -c .");
  const std::string file = root.string() + "/.cache/jargon.txt.gz";
  const Outcome got = run("train", "SINKHORN_JARGON=");
  EXPECT_TRUE(contains(got.out, ": train " + file)) << got.out << got.err;
  EXPECT_EQ(read(file), "words");
  EXPECT_TRUE(contains(run("train", "SINKHORN_JARGON=").out, file));
  EXPECT_EQ(run("train", "SINKHORN_JARGON=mine").out, "sinkhorn in " + root.string() + "/elsewhere: train mine\n");
  const std::string log = read(root / "apt.log");
  EXPECT_EQ(std::count(log.begin(), log.end(), '\n'), 1) << log;
}

TEST_F(Run, GoesOnWithoutTheDefaultTextAndTriesAgainLater) {
  const Outcome got = run("train", "SINKHORN_JARGON=");
  EXPECT_EQ(got.status, 0);
  EXPECT_TRUE(contains(got.err, "cannot be had")) << got.err;
  EXPECT_FALSE(fs::exists(root / ".cache/jargon.txt.gz"));
  EXPECT_EQ(run("train", "SINKHORN_JARGON=").err, "") << "a second try at once";
  fs::last_write_time(root / ".cache/jargon-text.failed", fs::file_time_type::clock::now() - std::chrono::hours(25));
  EXPECT_TRUE(contains(run("train", "SINKHORN_JARGON=").err, "cannot be had"));
}

TEST_F(Run, TestRunsTheTestProgramWithTheRemainingArguments) {
  const Outcome got = run("test --gtest_filter=A.B", "STATUS=1");
  EXPECT_EQ(got.status, 1);
  EXPECT_EQ(got.out, "sinkhorn_tests in " + root.string() + "/elsewhere: --gtest_filter=A.B\n") << got.err;
  EXPECT_FALSE(fs::exists(root / "build" / "asan"));
}

TEST_F(Run, TestAllAddsTheSanitizersAndFailsIfAnyFails) {
  const Outcome got = run("test --all", "STATUS=3");
  EXPECT_EQ(got.status, 1);
  for (const char* preset : {"cpu", "asan", "tsan"})
    EXPECT_TRUE(fs::exists(root / "build" / preset / "sinkhorn_tests"));
  EXPECT_EQ(run("test --all").status, 0);
}

// Of a long log only the end may be kept, so that is where it stands.
TEST_F(Run, TestAllEndsInWhatFailedAndWhy) {
  fake("ninja", R"(echo '[1/1] ninja noise'
    [[ $2 != *tsan ]] || { echo 'pool.cpp:1: error: no'; exit 1; }
    cat >"$2/sinkhorn_tests" <<'END'
#!/bin/bash
[[ $0 == *asan* && $GTEST_SHARD_INDEX == 1 ]] || { echo '[  PASSED  ] 8 tests.'; exit 0; }
echo '[ RUN      ] Pool.Lends'
echo 'tests/pool_test.cpp:7: Failure'
echo '  lent: 3'
echo '[  FAILED  ] Pool.Lends (3 ms)'
echo '[ RUN      ] Pool.Returns'
echo '==1==ERROR: AddressSanitizer: heap-use-after-free on address 0x1'
echo 'SUMMARY: AddressSanitizer: heap-use-after-free pool.cpp:12 in take'
kill -ABRT $$
END
    chmod +x "$2/sinkhorn_tests")");
  const Outcome got = run("test --all", "SINKHORN_TEST_SHARES=3");
  EXPECT_EQ(got.status, 1);
  const std::size_t summary = got.err.find("run: summary of the parts\n");
  ASSERT_NE(summary, std::string::npos) << got.err;
  const std::string end = got.err.substr(summary);
  for (const char* part :
       {"normal: ok: 24 passed, 0 failed, 0 skipped\n", "asan: FAILED: exit status 134 (signal ABRT)",
        "failed: Pool.Lends\n", "died in: Pool.Returns\n", "tests/pool_test.cpp:7: Failure\n", "lent: 3\n",
        "SUMMARY: AddressSanitizer: heap-use-after-free pool.cpp:12 in take\n",
        "tsan: FAILED: build/tsan did not build", "pool.cpp:1: error: no"})
    EXPECT_TRUE(contains(end, part)) << part << " is not in:\n" << end;
}

}  // namespace
