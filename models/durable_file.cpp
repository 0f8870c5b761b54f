#include "models/durable_file.h"

#include <dirent.h>
#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cctype>
#include <cerrno>
#include <cstdio>
#include <string_view>
#include <system_error>
#include <utility>

#include "autograd/error.h"

namespace sinkhorn {
namespace fs = std::filesystem;

int FileSystem::open(const std::string& path, int flags, mode_t mode) { return ::open(path.c_str(), flags, mode); }
ssize_t FileSystem::read(int file, std::span<std::byte> into) { return ::read(file, into.data(), into.size()); }
ssize_t FileSystem::write(int file, std::span<const std::byte> bytes) {
  return ::write(file, bytes.data(), bytes.size());
}
int FileSystem::truncate(int file) { return ::ftruncate(file, 0); }
int FileSystem::fsync(int file) { return ::fsync(file); }
int FileSystem::close(int file) { return ::close(file); }
int FileSystem::status(int file, struct stat& status) { return ::fstat(file, &status); }
int FileSystem::lock(int file) { return ::flock(file, LOCK_EX | LOCK_NB); }
int FileSystem::rename(const std::string& from, const std::string& to) { return std::rename(from.c_str(), to.c_str()); }
int FileSystem::unlink(const std::string& path) { return ::unlink(path.c_str()); }
int FileSystem::mkdir(const std::string& path) { return ::mkdir(path.c_str(), 0777); }

int FileSystem::list(const std::string& folder, std::vector<std::string>& names) {
  DIR* stream = ::opendir(folder.c_str());
  if (stream == nullptr) return -1;
  errno = 0;
  while (const dirent* entry = ::readdir(stream)) names.emplace_back(entry->d_name);
  const int error = errno;
  ::closedir(stream);
  errno = error;
  return error == 0 ? 0 : -1;
}

FileSystem& system_files() {
  static FileSystem files;
  return files;
}

OpenFile::OpenFile(FileSystem& files, const fs::path& path, int flags, mode_t mode)
    : files_(files), file_(files.open(path.string(), flags | O_CLOEXEC, mode)) {}
OpenFile::~OpenFile() { close(); }
int OpenFile::close() { return file_ < 0 ? 0 : files_.close(std::exchange(file_, -1)); }

void fail_file(const std::string& action, const fs::path& path, int error) {
  const char* remedy = "check the path and the disk, or choose another folder";
  switch (error) {
    case ENOSPC:
    case EDQUOT:
    case EFBIG:
      remedy = "free some space or choose another folder";
      break;
    case EACCES:
    case EPERM:
    case EROFS:
      remedy = "make it accessible to this user or choose another folder";
      break;
    case ENOTDIR:
    case EEXIST:
      remedy = "a file stands where a folder is needed: choose another folder";
      break;
    case ENOENT:
      remedy = "check the path";
      break;
    case EMFILE:
    case ENFILE:
      remedy = "too many files are open: raise `ulimit -n`";
      break;
    default:
      break;
  }
  fail<DataError>("cannot ", action, " ", path.string(), ": ", std::generic_category().message(error), "; ", remedy);
}

namespace {

fs::path parent_of(const fs::path& path) { return path.has_parent_path() ? path.parent_path() : fs::path("."); }

/// Makes the names in `folder` durable; -1 with errno.
int sync_folder(const fs::path& folder, FileSystem& files) {
  OpenFile open(files, folder, O_RDONLY | O_DIRECTORY);
  if (!open) return -1;
  if (files.fsync(open.get()) == 0) return 0;
  return errno == EINVAL ? 0 : -1;  // this file system has no folder sync, so there is nothing to wait for
}

}  // namespace

void write_durably(const fs::path& path, std::span<const std::span<const std::byte>> pieces, FileSystem& files) {
  static std::atomic<unsigned> count = 0;
  const fs::path folder = parent_of(path);
  const fs::path temporary = folder / ("." + path.filename().string() + "." + std::to_string(::getpid()) + "-" +
                                       std::to_string(count++) + ".tmp");
  OpenFile file(files, temporary, O_WRONLY | O_CREAT | O_EXCL, 0666);
  if (!file) fail_file("create a file for", path, errno);
  const auto give_up = [&](const char* action) {
    const int error = errno;
    file.close();
    files.unlink(temporary.string());
    fail_file(action, path, error);
  };
  for (std::span<const std::byte> piece : pieces) {
    while (!piece.empty()) {
      errno = EIO;  // a write of nothing sets no error
      const ssize_t written = files.write(file.get(), piece);
      if (written < 0 && errno == EINTR) continue;
      if (written <= 0) give_up("write");
      piece = piece.subspan(static_cast<std::size_t>(written));
    }
  }
  // A failed fsync may have dropped the pages and cleared the error: a second one would lie, so the file is given up.
  if (files.fsync(file.get()) != 0) give_up("write to the disk");
  if (file.close() != 0) give_up("close");
  if (files.rename(temporary.string(), path.string()) != 0) give_up("put in place");
  if (sync_folder(folder, files) != 0) fail_file("sync the folder of", path, errno);
}

void make_folder_durably(const fs::path& folder, FileSystem& files) {
  const fs::path clean = (folder / "").parent_path(), parent = parent_of(clean);
  int made = files.mkdir(clean.string());
  if (made != 0 && errno == ENOENT && parent != clean) {
    make_folder_durably(parent, files);
    made = files.mkdir(clean.string());
  }
  if (made != 0 && errno != EEXIST) fail_file("create folder", folder, errno);
  // Also for a folder that exists: its maker may have died before this sync. Only then its parent may be closed to us.
  if (sync_folder(parent, files) != 0 && (made == 0 || errno != EACCES))
    fail_file("sync the folder above", folder, errno);
}

bool is_temporary(const std::string& name, const std::string& extension) {
  std::string_view rest = name;
  const auto drop_end = [&](std::string_view end) {
    const bool has = rest.ends_with(end);
    if (has) rest.remove_suffix(end.size());
    return has;
  };
  const auto drop_digits = [&] {
    const std::size_t before = rest.size();
    while (!rest.empty() && std::isdigit(static_cast<unsigned char>(rest.back()))) rest.remove_suffix(1);
    return rest.size() < before;
  };
  return rest.starts_with('.') && drop_end(".tmp") && drop_digits() && drop_end("-") && drop_digits() &&
         drop_end(".") && rest.ends_with(extension);
}

}  // namespace sinkhorn
