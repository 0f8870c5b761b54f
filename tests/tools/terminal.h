// Runs the program on a terminal of its own (a pty), as somebody who types sees it.
#pragma once
#include <fcntl.h>
#include <poll.h>
#include <pty.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/wait.h>
#include <termios.h>
#include <unistd.h>

#include <chrono>
#include <filesystem>
#include <string>
#include <utility>
#include <vector>

#include "autograd/error.h"
#include "build_info.h"

namespace sinkhorn::testing {

class Terminal {
 public:
  Terminal(const std::filesystem::path& folder, std::vector<std::string> arguments,
           const std::vector<std::pair<std::string, std::string>>& environment = {}, unsigned short columns = 80,
           unsigned short rows = 24) {
    arguments.insert(arguments.begin(), std::string(build_info::binary_dir) + "/sinkhorn");
    std::vector<char*> words;
    words.reserve(arguments.size() + 1);
    for (auto& argument : arguments) words.push_back(argument.data());
    words.push_back(nullptr);
    const winsize size{rows, columns, 0, 0};
    int ours, theirs;
    if (openpty(&ours, &theirs, nullptr, nullptr, nullptr) != 0) fail("cannot make a terminal");
    tcgetattr(theirs, &before_);
    close(ours);
    close(theirs);
    child_ = forkpty(&screen_, nullptr, &before_, &size);
    if (child_ < 0) fail("cannot make a terminal");
    if (child_ == 0) {
      if (chdir(folder.c_str()) != 0) _exit(126);
      for (const int number : {SIGINT, SIGTERM, SIGHUP, SIGTSTP}) signal(number, SIG_DFL);
      setenv("TERM", "xterm", 1);
      setenv("SINKHORN_PROGRAM", "sinkhorn", 1);
      unsetenv("NO_COLOR");
      for (const auto& [name, value] : environment) setenv(name.c_str(), value.c_str(), 1);
      execv(words[0], words.data());
      _exit(127);
    }
  }
  ~Terminal() {
    if (child_ > 0) kill(child_, SIGKILL), waitpid(child_, nullptr, 0);
    close(screen_);
  }
  Terminal(const Terminal&) = delete;

  void type(const std::string& keys) const { (void)!write(screen_, keys.data(), keys.size()); }
  /// All that was written so far.
  const std::string& screen() {
    read_for(0);
    return shown_;
  }
  /// Waits until `text` appears behind what an earlier call found. False if the program ended, or two minutes passed.
  bool wait_for(const std::string& text) {
    const auto end = std::chrono::steady_clock::now() + std::chrono::minutes(2);
    for (bool last_look = false;;) {
      const std::size_t at = shown_.find(text, found_);
      if (at != std::string::npos) {
        found_ = at + text.size();
        return true;
      }
      if (last_look) return false;
      last_look = !read_for(100) || std::chrono::steady_clock::now() > end;
    }
  }
  /// The exit code, or 1000 + the signal.
  int wait() {
    while (read_for(1000)) {
    }
    int status = 0;
    if (child_ > 0) waitpid(child_, &status, 0);
    child_ = -1;
    return WIFEXITED(status) ? WEXITSTATUS(status) : 1000 + WTERMSIG(status);
  }
  void send(int signal) const {
    if (child_ > 0) kill(child_, signal);
  }
  void resize(unsigned short columns, unsigned short rows) const {
    const winsize size{rows, columns, 0, 0};
    ioctl(screen_, TIOCSWINSZ, &size);
  }
  /// As they were when the program began, which may have changed them by now.
  const termios& before() const { return before_; }
  termios attributes() const {
    termios now{};
    tcgetattr(screen_, &now);
    return now;
  }

 private:
  // False once the program has closed its side.
  bool read_for(int milliseconds) {
    pollfd waiting{screen_, POLLIN, 0};
    while (poll(&waiting, 1, milliseconds) > 0) {
      char buffer[4096];
      const ssize_t got = read(screen_, buffer, sizeof buffer);
      if (got <= 0) return false;
      shown_.append(buffer, std::size_t(got));
      milliseconds = 0;
    }
    return true;
  }

  termios before_{};
  int screen_ = -1;
  pid_t child_ = -1;
  std::string shown_;
  std::size_t found_ = 0;
};

}  // namespace sinkhorn::testing
