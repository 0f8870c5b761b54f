#include "tools/file_watch.h"

#include <poll.h>
#include <sys/inotify.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <thread>

namespace sinkhorn {
namespace fs = std::filesystem;

FileWatch::FileWatch(fs::path folder, bool poll) : folder_(std::move(folder)), seen_(stamps()) {
  if (poll) return;
  notify_ = inotify_init1(IN_NONBLOCK | IN_CLOEXEC);
  if (notify_ >= 0 && inotify_add_watch(notify_, folder_.c_str(), IN_CLOSE_WRITE | IN_MOVED_TO) < 0) {
    close(notify_);
    notify_ = -1;
  }
}

FileWatch::~FileWatch() {
  if (notify_ >= 0) close(notify_);
}

std::map<std::string, FileWatch::Stamp> FileWatch::stamps() const {
  std::map<std::string, Stamp> found;
  std::error_code error;
  for (const fs::directory_entry& entry : fs::directory_iterator(folder_, error)) {
    if (!entry.is_regular_file(error)) continue;
    const Stamp stamp{entry.last_write_time(error), entry.file_size(error)};
    if (!error) found[entry.path().filename().string()] = stamp;
  }
  return found;
}

std::set<std::string> FileWatch::changed(std::chrono::milliseconds patience) {
  // inotify only wakes us: what changed is found by comparing, so that both ways see the same.
  constexpr std::chrono::milliseconds step{200}, settle{30};
  const auto end = std::chrono::steady_clock::now() + patience;
  for (;;) {
    std::map<std::string, Stamp> now = stamps();
    std::set<std::string> names;
    for (const auto& [name, stamp] : now)
      if (const auto before = seen_.find(name); before == seen_.end() || before->second != stamp) names.insert(name);
    if (!names.empty()) {
      // An editor may still be writing: wait until nothing changes any more.
      std::this_thread::sleep_for(settle);
      if (stamps() != now) continue;
      seen_ = std::move(now);
      return names;
    }
    seen_ = std::move(now);  // files that are gone are new when they come back
    const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(end - std::chrono::steady_clock::now());
    if (left.count() <= 0) return {};
    if (notify_ < 0) {
      std::this_thread::sleep_for(std::min(left, step));
      continue;
    }
    pollfd waiting{notify_, POLLIN, 0};
    if (poll(&waiting, 1, int(left.count())) < 0) return {};  // a signal
    for (std::array<char, 4096> events{}; read(notify_, events.data(), events.size()) > 0;) {
    }
  }
}

}  // namespace sinkhorn
