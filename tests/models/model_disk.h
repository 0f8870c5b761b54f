// A disk in memory that knows what would survive a power loss, and that can fail at any call.
#pragma once
#include <fcntl.h>

#include <cerrno>
#include <functional>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "models/durable_file.h"

namespace sinkhorn::testing {

/// Promises no more than POSIX does: a write survives once its file was synced, a name (created, renamed or removed)
/// once its folder was synced; anything else may survive or not, in any combination. A file's failed fsync drops its
/// writes for good, as Linux does. Paths are absolute; "/" exists.
class ModelDisk : public FileSystem {
 public:
  /// Asked before every call, with its name: 0 lets it through, another value makes it fail with that errno.
  std::function<int(const std::string& call)> on_call = [](const std::string&) { return 0; };
  bool syncs_files = true, syncs_folders = true;  ///< false: a disk that lies
  std::size_t longest_write = 150;                ///< bytes that one call takes

  /// The disk as it may be found after losing power now.
  std::unique_ptr<ModelDisk> after_power_loss(std::mt19937_64& random) const {
    auto after = std::make_unique<ModelDisk>();
    const auto mode = static_cast<Mode>(random() % 4);
    std::map<const Node*, std::shared_ptr<Node>> done;
    after->root_ = survivor(*root_, mode, random, done);
    return after;
  }

  int open(const std::string& path, int flags, mode_t) override {
    if (refused("open")) return -1;
    std::shared_ptr<Node> node = find(path);
    if (node && (flags & O_CREAT) && (flags & O_EXCL)) return error(EEXIST);
    if (node && (flags & O_DIRECTORY) && !node->is_folder) return error(ENOTDIR);
    if (!node) {
      const auto [folder, name] = place(path);
      if (!(flags & O_CREAT) || !folder) return error(ENOENT);
      node = std::make_shared<Node>();
      folder->change({name, node, ""});
    }
    open_[next_] = {node, 0, false};
    return next_++;
  }
  ssize_t read(int file, std::span<std::byte> into) override {
    if (refused("read")) return -1;
    Open& open = open_.at(file);
    const std::size_t count = std::min(into.size(), open.node->bytes.size() - open.at);
    std::copy_n(reinterpret_cast<const std::byte*>(open.node->bytes.data()) + open.at, count, into.begin());
    open.at += count;
    return static_cast<ssize_t>(count);
  }
  ssize_t write(int file, std::span<const std::byte> bytes) override {
    const bool fails = refused("write");
    const std::size_t count = std::min(fails ? bytes.size() / 2 : bytes.size(), longest_write);
    Open& open = open_.at(file);
    const Write write{open.at, {reinterpret_cast<const char*>(bytes.data()), count}};
    write.apply(open.node->bytes);
    open.node->unsynced.push_back(write);
    if (fails) return -1;  // a full disk took a part
    open.at += count;
    return static_cast<ssize_t>(count);
  }
  int truncate(int file) override {
    if (refused("truncate")) return -1;
    Node& node = *open_.at(file).node;
    node.bytes.clear();
    node.unsynced.push_back({0, "", true});
    return 0;
  }
  int fsync(int file) override {
    const bool fails = refused("fsync");
    Node& node = *open_.at(file).node;
    if (node.is_folder && !fails && syncs_folders) {
      node.synced_names = node.names;
      node.unsynced_changes.clear();
    } else if (!node.is_folder && (fails || syncs_files)) {
      if (!fails) node.synced = node.bytes;
      node.unsynced.clear();
    }
    return fails ? -1 : 0;
  }
  int close(int file) override {
    const bool fails = refused("close");
    if (open_.at(file).locked) open_.at(file).node->locked = false;
    open_.erase(file);
    return fails ? -1 : 0;
  }
  int status(int file, struct stat& status) override {
    if (refused("status")) return -1;
    const Node& node = *open_.at(file).node;
    status.st_mode = node.is_folder ? S_IFDIR : S_IFREG;
    status.st_size = static_cast<off_t>(node.bytes.size());
    return 0;
  }
  int lock(int file) override {
    if (refused("lock")) return -1;
    Open& open = open_.at(file);
    if (open.node->locked) return error(EWOULDBLOCK);
    open.node->locked = open.locked = true;
    return 0;
  }
  int rename(const std::string& from, const std::string& to) override {
    if (refused("rename")) return -1;
    const auto node = find(from);
    const auto [folder, name] = place(to);
    if (!node || !folder) return error(ENOENT);
    folder->change({name, node, place(from).second});
    return 0;
  }
  int unlink(const std::string& path) override {
    if (refused("unlink")) return -1;
    if (!find(path)) return error(ENOENT);
    const auto [folder, name] = place(path);
    folder->change({name, nullptr, ""});
    return 0;
  }
  int mkdir(const std::string& path) override {
    if (refused("mkdir")) return -1;
    if (find(path)) return error(EEXIST);
    const auto [folder, name] = place(path);
    if (!folder) return error(ENOENT);
    auto node = std::make_shared<Node>();
    node->is_folder = true;
    folder->change({name, node, ""});
    return 0;
  }
  int list(const std::string& path, std::vector<std::string>& names) override {
    if (refused("list")) return -1;
    const auto node = find(path);
    if (!node) return error(ENOENT);
    for (const auto& [name, child] : node->names) names.push_back(name);
    return 0;
  }

 private:
  enum class Mode { none_survives, all_survives, a_prefix_survives, any_survives };
  struct Write {
    std::size_t at = 0;
    std::string bytes;
    bool clears = false;

    void apply(std::string& content) const {
      if (clears) content.clear();
      content.resize(std::max(content.size(), at + bytes.size()), '\0');
      content.replace(at, bytes.size(), bytes);
    }
  };
  struct Node;
  /// `name` now means `node` (nothing: removed); `gone` is the name it was renamed from.
  struct Change {
    std::string name;
    std::shared_ptr<Node> node;
    std::string gone;
  };
  using Names = std::map<std::string, std::shared_ptr<Node>>;
  static void apply(const Change& change, Names& names) {
    names.erase(change.gone);
    if (change.node)
      names[change.name] = change.node;
    else
      names.erase(change.name);
  }
  struct Node {
    bool is_folder = false, locked = false;
    std::string bytes, synced;
    std::vector<Write> unsynced;
    Names names, synced_names;
    std::vector<Change> unsynced_changes;

    void change(Change change) {
      apply(change, names);
      unsynced_changes.push_back(std::move(change));
    }
  };
  struct Open {
    std::shared_ptr<Node> node;
    std::size_t at = 0;
    bool locked = false;
  };

  bool refused(const std::string& call) {
    const int error = on_call(call);
    if (error != 0) errno = error;
    return error != 0;
  }
  static int error(int number) {
    errno = number;
    return -1;
  }
  std::shared_ptr<Node> find(const std::string& path) const {
    std::shared_ptr<Node> node = root_;
    for (const auto& part : std::filesystem::path(path).relative_path()) {
      const auto child = node->names.find(part.string());
      if (child == node->names.end()) return nullptr;
      node = child->second;
    }
    return node;
  }
  /// The folder that holds `path`, nullptr if there is none, and the name in it.
  std::pair<std::shared_ptr<Node>, std::string> place(const std::string& path) const {
    const std::filesystem::path parts(path);
    return {find(parts.parent_path().string()), parts.filename().string()};
  }

  static std::shared_ptr<Node> survivor(const Node& node, Mode mode, std::mt19937_64& random,
                                        std::map<const Node*, std::shared_ptr<Node>>& done) {
    if (const auto known = done.find(&node); known != done.end()) return known->second;
    auto after = done[&node] = std::make_shared<Node>();
    const auto survives = [&](std::size_t index, std::size_t prefix) {
      return mode == Mode::all_survives || (mode == Mode::a_prefix_survives && index < prefix) ||
             (mode == Mode::any_survives && random() % 2 == 0);
    };
    after->is_folder = node.is_folder;
    after->bytes = node.synced;
    const std::size_t writes = node.unsynced.size(), prefix = random() % (writes + 1);
    for (std::size_t i = 0; i < writes; ++i) {
      Write write = node.unsynced[i];
      if (mode == Mode::any_survives && random() % 4 == 0) write.bytes.resize(random() % (write.bytes.size() + 1));
      if (survives(i, prefix)) write.apply(after->bytes);
    }
    Names names = node.synced_names;
    const std::size_t changes = node.unsynced_changes.size(), first = random() % (changes + 1);
    for (std::size_t i = 0; i < changes; ++i)
      if (survives(i, first)) apply(node.unsynced_changes[i], names);
    for (const auto& [name, child] : names) after->names[name] = survivor(*child, mode, random, done);
    after->synced = after->bytes;
    after->synced_names = after->names;
    return after;
  }

  std::shared_ptr<Node> root_ = [] {
    auto node = std::make_shared<Node>();
    node->is_folder = true;
    return node;
  }();
  std::map<int, Open> open_;
  int next_ = 3;
};

}  // namespace sinkhorn::testing
