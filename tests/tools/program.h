// Runs the program as a user does: as a process of its own, with its own folder, input and environment.
#pragma once
#include <fcntl.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <functional>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include "autograd/error.h"
#include "build_info.h"

namespace sinkhorn::testing {

/// The words of a command line; `+` puts one list behind another.
using Words = std::vector<std::string>;

inline std::string content_of(const std::filesystem::path& path) {
  std::ifstream file(path, std::ios::binary);
  std::ostringstream text;
  text << file.rdbuf();
  return text.str();
}

inline bool contains(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

struct Outcome {
  int code = -1;  // of the exit, or 1000 + the signal that ended it
  std::string out, err;
};

/// How a process starts.
struct Setup {
  std::string input = {};                                             // on stdin
  std::vector<std::pair<std::string, std::string>> environment = {};  // added
  std::function<void()> in_child = {};                                // before the program starts
  std::string program = "sinkhorn";                                   // of the build folder
};

/// A running program of the build with stdout and stderr in files of `folder`, which is also where it runs.
class Process {
 public:
  Process(const std::filesystem::path& folder, std::vector<std::string> arguments, const Setup& setup = {})
      : folder_(folder) {
    std::ofstream(path("stdin"), std::ios::binary) << setup.input;
    for (const char* name : {"stdout", "stderr"}) std::filesystem::remove(path(name));  // of an earlier process
    arguments.insert(arguments.begin(), std::string(build_info::binary_dir) + "/" + setup.program);
    std::vector<char*> words;
    words.reserve(arguments.size() + 1);
    for (auto& argument : arguments) words.push_back(argument.data());
    words.push_back(nullptr);
    child_ = fork();
    if (child_ < 0) fail("cannot fork");
    if (child_ > 0) return;
    for (const auto& [name, flags, descriptor] : {std::tuple("stdin", O_RDONLY, 0),
                                                  {"stdout", O_WRONLY | O_CREAT | O_TRUNC, 1},
                                                  {"stderr", O_WRONLY | O_CREAT | O_TRUNC, 2}}) {
      const int file = open(path(name).c_str(), flags, 0600);
      if (file < 0 || dup2(file, descriptor) < 0) _exit(126);
    }
    if (chdir(folder.c_str()) != 0) _exit(126);
    signal(SIGINT, SIG_DFL);  // a shell starts background jobs with it ignored
    unsetenv("SINKHORN_JARGON");
    setenv("SINKHORN_PROGRAM", "sinkhorn", 1);
    for (const auto& [name, value] : setup.environment) setenv(name.c_str(), value.c_str(), 1);
    if (setup.in_child) setup.in_child();
    execv(words[0], words.data());
    _exit(127);
  }
  ~Process() {
    if (child_ > 0) kill(child_, SIGKILL), wait();
  }
  Process(const Process&) = delete;

  void send(int signal) const {
    if (child_ > 0) kill(child_, signal);  // -1 would be everybody
  }
  std::string out() const { return content_of(path("stdout")); }
  /// Waits until stdout holds `text`. False if the process ended first.
  bool wait_for(const std::string& text) {
    for (;;) {
      const bool last_look = ended();
      if (contains(out(), text)) return true;
      if (last_look) return false;
      usleep(2000);
    }
  }
  bool ended() {
    if (child_ > 0 && waitpid(child_, &status_, WNOHANG) == child_) child_ = -1;
    return child_ < 0;
  }
  Outcome wait() {
    if (child_ > 0) waitpid(child_, &status_, 0);
    child_ = -1;
    return {WIFEXITED(status_) ? WEXITSTATUS(status_) : 1000 + WTERMSIG(status_), out(), content_of(path("stderr"))};
  }

 private:
  std::filesystem::path path(const std::string& name) const { return folder_ / ("." + name); }

  std::filesystem::path folder_;
  pid_t child_ = -1;
  int status_ = 0;
};

inline Outcome run_program(const std::filesystem::path& folder, std::vector<std::string> arguments,
                           const Setup& setup = {}) {
  return Process(folder, std::move(arguments), setup).wait();
}

}  // namespace sinkhorn::testing

namespace sinkhorn {

// Here, where tests find it without naming it: its operands are types of the standard library.
inline testing::Words operator+(testing::Words words, const testing::Words& more) {
  words.insert(words.end(), more.begin(), more.end());
  return words;
}

}  // namespace sinkhorn
