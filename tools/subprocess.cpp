#include "tools/subprocess.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>

#include "autograd/error.h"

namespace sinkhorn {
namespace {

// Both ends of a pipe; what a child needs of it is duplicated onto its own stdout.
struct Pipe {
  Pipe() {
    if (pipe2(ends.data(), O_CLOEXEC) != 0) fail("cannot start a program: ", std::strerror(errno));
  }
  ~Pipe() {
    close_end(0);
    close_end(1);
  }
  Pipe(const Pipe&) = delete;
  void close_end(std::size_t which) {
    if (ends[which] >= 0) close(ends[which]);
    ends[which] = -1;
  }
  std::array<int, 2> ends{-1, -1};
};

// What the child does between fork and exec: only calls that are safe there.
[[noreturn]] void become(char* const* words, const SubprocessLimits& limits, int output, int report) {
  setpgid(0, 0);  // so that what it starts can be ended with it
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  const int nothing = open("/dev/null", O_RDONLY);
  if (nothing < 0 || dup2(nothing, 0) < 0 || dup2(output, 1) < 0 || dup2(output, 2) < 0) _exit(126);
  signal(SIGPIPE, SIG_DFL);
  const rlimit no_core{0, 0};
  setrlimit(RLIMIT_CORE, &no_core);
  if (limits.memory > 0) {
    const rlimit data{limits.memory, limits.memory};
    setrlimit(RLIMIT_DATA, &data);
  }
  execvp(words[0], words);
  const int error = errno;
  (void)!write(report, &error, sizeof error);
  _exit(127);
}

}  // namespace

std::string SubprocessResult::how_it_ended(const SubprocessLimits& limits) const {
  if (timed_out) return "no end after " + std::to_string(limits.time.count()) + " s";
  if (signal != 0) return "signal " + std::to_string(signal) + " (" + strsignal(signal) + ")";
  return "exit code " + std::to_string(exit_code);
}

SubprocessResult run_subprocess(const std::vector<std::string>& words, const SubprocessLimits& limits) {
  std::vector<char*> arguments;
  arguments.reserve(words.size() + 1);
  for (const std::string& word : words) arguments.push_back(const_cast<char*>(word.c_str()));
  arguments.push_back(nullptr);

  Pipe output, report;  // `report` stays empty if exec succeeds
  const pid_t child = fork();
  if (child < 0) fail("cannot start ", words[0], ": ", std::strerror(errno));
  if (child == 0) become(arguments.data(), limits, output.ends[1], report.ends[1]);
  output.close_end(1);
  report.close_end(1);

  SubprocessResult result;
  const auto end = std::chrono::steady_clock::now() + limits.time;
  for (std::array<char, 4096> buffer{};;) {
    const auto left =
        std::chrono::duration_cast<std::chrono::milliseconds>(end - std::chrono::steady_clock::now()).count();
    pollfd waiting{output.ends[0], POLLIN, 0};
    const int ready = left > 0 ? poll(&waiting, 1, int(std::min<long>(left, 1000))) : 0;
    if (left <= 0) {
      result.timed_out = true;
      break;
    }
    if (ready < 0 && errno != EINTR) break;
    if (ready <= 0) continue;
    const ssize_t got = read(output.ends[0], buffer.data(), buffer.size());
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) break;
    const std::size_t room = limits.output - std::min(limits.output, result.output.size());
    result.output.append(buffer.data(), std::min(std::size_t(got), room));
  }
  if (result.timed_out) kill(-child, SIGKILL);
  int status = 0;
  while (waitpid(child, &status, 0) < 0 && errno == EINTR) {
  }
  kill(-child, SIGKILL);  // what it may have left running
  int error = 0;
  if (read(report.ends[0], &error, sizeof error) == ssize_t(sizeof error))
    fail("cannot start ", words[0], ": ", std::strerror(error));
  if (WIFSIGNALED(status))
    result.signal = WTERMSIG(status);
  else
    result.exit_code = WEXITSTATUS(status);
  return result;
}

}  // namespace sinkhorn
