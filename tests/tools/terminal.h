// Runs the program on a terminal of its own, as a user at a keyboard does.
#pragma once
#include <poll.h>
#include <pty.h>
#include <termios.h>
#include <utmp.h>

#include <chrono>

#include "tests/tools/program.h"

namespace sinkhorn::testing {

/// A program of the build on a pseudo terminal, whose settings outlive the program.
class Terminal {
 public:
  Terminal(const std::filesystem::path& folder, std::vector<std::string> arguments, unsigned short columns = 80,
           unsigned short rows = 24, const std::vector<std::pair<std::string, std::string>>& environment = {}) {
    const winsize size{.ws_row = rows, .ws_col = columns, .ws_xpixel = 0, .ws_ypixel = 0};
    if (openpty(&keyboard_, &program_side_, nullptr, nullptr, &size) != 0) fail("cannot open a pseudo terminal");
    arguments.insert(arguments.begin(), std::string(build_info::binary_dir) + "/sinkhorn");
    std::vector<char*> words;
    words.reserve(arguments.size() + 1);
    for (auto& argument : arguments) words.push_back(argument.data());
    words.push_back(nullptr);
    child_ = fork();
    if (child_ < 0) fail("cannot fork");
    if (child_ > 0) return;
    close(keyboard_);
    setenv("TERM", "xterm", 1);
    setenv("LC_ALL", "C.UTF-8", 1);
    unsetenv("NO_COLOR");
    for (const auto& [name, value] : environment) setenv(name.c_str(), value.c_str(), 1);
    for (const int number : {SIGINT, SIGQUIT, SIGTERM, SIGHUP, SIGTSTP}) signal(number, SIG_DFL);
    if (login_tty(program_side_) == 0 && chdir(folder.c_str()) == 0) execv(words[0], words.data());
    _exit(127);
  }
  ~Terminal() {
    if (child_ > 0) kill(child_, SIGKILL), waitpid(child_, nullptr, 0);
    close(keyboard_);
    close(program_side_);
  }
  Terminal(const Terminal&) = delete;

  void type(const std::string& keys) const {
    if (write(keyboard_, keys.data(), keys.size()) != ssize_t(keys.size())) fail("the pseudo terminal takes no keys");
  }
  void send(int signal) const {
    if (child_ > 0) kill(child_, signal);
  }
  void resize(unsigned short columns, unsigned short rows) const {
    const winsize size{.ws_row = rows, .ws_col = columns, .ws_xpixel = 0, .ws_ypixel = 0};
    ioctl(keyboard_, TIOCSWINSZ, &size);
  }
  /// What the program has written since the last call that found its text, up to and with `text`; empty if it does not
  /// come within `seconds`.
  std::string wait_for(const std::string& text, int seconds = 60) {
    const auto until = std::chrono::steady_clock::now() + std::chrono::seconds(seconds);
    for (;;) {
      if (const std::size_t at = written_.find(text, seen_); at != std::string::npos) {
        const std::size_t begin = std::exchange(seen_, at + text.size());
        return written_.substr(begin, seen_ - begin);
      }
      if (std::chrono::steady_clock::now() > until || !read_some(100)) return {};
    }
  }
  /// The exit code, or 1000 + the signal that ended it.
  int wait() {
    int status = 0;
    while (waitpid(child_, &status, WNOHANG) == 0) read_some(20);
    child_ = -1;
    while (read_some(0)) {
    }
    return WIFEXITED(status) ? WEXITSTATUS(status) : 1000 + WTERMSIG(status);
  }
  const std::string& written() const { return written_; }
  termios settings() const {
    termios now{};
    tcgetattr(program_side_, &now);
    return now;
  }
  bool hands_over_single_keys() const { return !(settings().c_lflag & (ICANON | ECHO)); }

 private:
  /// False if nothing came (and, without the program, nothing ever will).
  bool read_some(int milliseconds) {
    pollfd in{keyboard_, POLLIN, 0};
    if (poll(&in, 1, milliseconds) <= 0) return child_ > 0 && milliseconds > 0;
    char buffer[4096];
    const ssize_t count = read(keyboard_, buffer, sizeof buffer);
    if (count <= 0) return false;
    written_.append(buffer, std::size_t(count));
    return true;
  }

  int keyboard_ = -1, program_side_ = -1;
  pid_t child_ = -1;
  std::string written_;
  std::size_t seen_ = 0;
};

inline bool same_settings(const termios& a, const termios& b) {
  return a.c_iflag == b.c_iflag && a.c_oflag == b.c_oflag && a.c_cflag == b.c_cflag && a.c_lflag == b.c_lflag &&
         std::equal(std::begin(a.c_cc), std::end(a.c_cc), std::begin(b.c_cc));
}

}  // namespace sinkhorn::testing
