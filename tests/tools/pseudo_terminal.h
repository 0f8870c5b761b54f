// Runs the program on a terminal of the test's own: keys go in, and what is drawn comes out.
#pragma once
#include <poll.h>
#include <pty.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <string>
#include <vector>

#include "autograd/error.h"
#include "build_info.h"

namespace sinkhorn::testing {

class PseudoTerminal {
 public:
  explicit PseudoTerminal(std::vector<std::string> arguments, int columns = 80, int rows = 24) {
    arguments.insert(arguments.begin(), std::string(build_info::binary_dir) + "/sinkhorn");
    std::vector<char*> words;
    words.reserve(arguments.size() + 1);
    for (auto& argument : arguments) words.push_back(argument.data());
    words.push_back(nullptr);
    winsize size{};
    size.ws_col = static_cast<unsigned short>(columns);
    size.ws_row = static_cast<unsigned short>(rows);
    child_ = forkpty(&master_, nullptr, nullptr, &size);
    if (child_ < 0) fail("cannot open a pseudo-terminal");
    if (child_ > 0) return;
    setenv("TERM", "xterm", 1);
    setenv("LC_ALL", "C.UTF-8", 1);
    unsetenv("NO_COLOR");
    execv(words[0], words.data());
    _exit(127);
  }
  ~PseudoTerminal() {
    if (child_ > 0) {
      kill(child_, SIGKILL);
      waitpid(child_, nullptr, 0);
    }
    close(master_);
  }
  PseudoTerminal(const PseudoTerminal&) = delete;

  void send(const std::string& keys) const {
    if (write(master_, keys.data(), keys.size()) != ssize_t(keys.size())) fail("the terminal takes no keys");
  }
  /// Reads until `text` is drawn after what earlier calls saw. False if the program ends, or is silent for a minute.
  bool wait_for(const std::string& text) {
    for (;;) {
      if (const std::size_t at = drawn_.find(text, seen_); at != std::string::npos) {
        seen_ = at + text.size();
        return true;
      }
      if (!read_more()) return false;
    }
  }
  /// Reads until the program ends. The exit code, or 1000 + the signal that ended it.
  int wait() {
    while (read_more()) {
    }
    int status = 0;
    waitpid(child_, &status, 0);
    child_ = -1;
    return WIFEXITED(status) ? WEXITSTATUS(status) : 1000 + WTERMSIG(status);
  }
  const std::string& drawn() const { return drawn_; }

 private:
  bool read_more() {
    constexpr int silence_ms = 60'000;
    pollfd in{master_, POLLIN, 0};
    if (poll(&in, 1, silence_ms) <= 0) return false;
    std::array<char, 4096> buffer;
    const ssize_t bytes = read(master_, buffer.data(), buffer.size());
    if (bytes <= 0) return false;  // EIO: the program has ended
    drawn_.append(buffer.data(), std::size_t(bytes));
    return true;
  }

  int master_ = -1;
  pid_t child_ = -1;
  std::string drawn_;
  std::size_t seen_ = 0;
};

}  // namespace sinkhorn::testing
