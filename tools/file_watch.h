// Says which files of a folder were saved: by inotify, or by looking again and again where that does not work.
#pragma once
#include <chrono>
#include <filesystem>
#include <map>
#include <memory>
#include <set>
#include <string>

namespace sinkhorn {

class FileWatch {
 public:
  /// Watches the files directly in `folder`. `poll`: without inotify, which network and container mounts may lack.
  FileWatch(std::filesystem::path folder, bool poll);
  ~FileWatch();
  FileWatch(const FileWatch&) = delete;

  /// Whether inotify serves.
  bool notified() const { return notify_ >= 0; }
  /// Names of the files whose content changed since the last call, waiting up to `patience` for the first; empty if
  /// there was none, or a signal came. Editors that write beside and rename are seen as well.
  std::set<std::string> changed(std::chrono::milliseconds patience);

 private:
  /// What tells two contents of a file apart cheaply.
  struct Stamp {
    std::filesystem::file_time_type time;
    std::uintmax_t size = 0;
    bool operator==(const Stamp&) const = default;
  };
  std::map<std::string, Stamp> stamps() const;

  std::filesystem::path folder_;
  int notify_ = -1;
  std::map<std::string, Stamp> seen_;
};

}  // namespace sinkhorn
