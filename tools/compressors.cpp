#include "tools/compressors.h"

#include <fcntl.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstdio>
#include <memory>

namespace sinkhorn {

std::optional<std::int64_t> compressed_bytes(const std::string& program, std::string_view text) {
  const auto temporary = [] { return std::unique_ptr<std::FILE, int (*)(std::FILE*)>(std::tmpfile(), std::fclose); };
  // Files on both sides, so that no pipe can fill up.
  const auto in = temporary(), out = temporary();
  if (!in || !out || std::fwrite(text.data(), 1, text.size(), in.get()) != text.size()) return {};
  std::rewind(in.get());

  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_adddup2(&actions, fileno(in.get()), STDIN_FILENO);
  posix_spawn_file_actions_adddup2(&actions, fileno(out.get()), STDOUT_FILENO);
  posix_spawn_file_actions_addopen(&actions, STDERR_FILENO, "/dev/null", O_WRONLY, 0);
  std::string name = program, strongest = "-9", to_stdout = "-c";
  std::array<char*, 4> arguments = {name.data(), strongest.data(), to_stdout.data(), nullptr};
  pid_t child = 0;
  const int failed = posix_spawnp(&child, program.c_str(), &actions, nullptr, arguments.data(), environ);
  posix_spawn_file_actions_destroy(&actions);
  if (failed) return {};
  int status = 0;
  while (waitpid(child, &status, 0) < 0)
    if (errno != EINTR) return {};
  if (!WIFEXITED(status) || WEXITSTATUS(status) != 0) return {};
  const off_t size = lseek(fileno(out.get()), 0, SEEK_END);
  if (size <= 0) return {};
  return size;
}

std::vector<CompressedSize> compressed_sizes(std::string_view text) {
  std::vector<CompressedSize> sizes;
  for (const char* program : {"bzip2", "xz"})
    if (const auto bytes = compressed_bytes(program, text)) sizes.push_back({program, 8.0 * double(*bytes)});
  return sizes;
}

}  // namespace sinkhorn
