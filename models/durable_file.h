// Files that survive a crash: written whole under a temporary name, synced, renamed, and their folder synced.
#pragma once
#include <sys/stat.h>
#include <sys/types.h>

#include <cstddef>
#include <filesystem>
#include <span>
#include <string>
#include <vector>

namespace sinkhorn {

/// The system calls behind every checkpoint. Each returns what its POSIX namesake returns (-1 sets errno); tests put a
/// disk that fails or loses power in their place.
class FileSystem {
 public:
  virtual ~FileSystem() = default;
  virtual int open(const std::string& path, int flags, mode_t mode);
  virtual ssize_t read(int file, std::span<std::byte> into);
  virtual ssize_t write(int file, std::span<const std::byte> bytes);
  virtual int truncate(int file);  ///< to nothing
  virtual int fsync(int file);
  virtual int close(int file);
  virtual int status(int file, struct stat& status);
  virtual int lock(int file);  ///< exclusive, without waiting: EWOULDBLOCK where another holder exists
  virtual int rename(const std::string& from, const std::string& to);
  virtual int unlink(const std::string& path);
  virtual int mkdir(const std::string& path);
  virtual int list(const std::string& folder, std::vector<std::string>& names);
};

/// The machine's own file system.
FileSystem& system_files();

/// Owns an open file and closes it.
class OpenFile {
 public:
  OpenFile(FileSystem& files, const std::filesystem::path& path, int flags, mode_t mode = 0);
  ~OpenFile();
  OpenFile(const OpenFile&) = delete;
  OpenFile& operator=(const OpenFile&) = delete;
  explicit operator bool() const { return file_ >= 0; }
  int get() const { return file_; }
  int close();  ///< 0 or -1 with errno; never tried twice, since the descriptor is gone either way
 private:
  FileSystem& files_;
  int file_;
};

/// Throws a DataError of one line: what could not be done, to which path, why, and what helps.
[[noreturn]] void fail_file(const std::string& action, const std::filesystem::path& path, int error);

/// Puts `pieces`, one after another, at `path`. After a crash or a power loss at any moment the path holds its former
/// content or the new one, whole; once this returns, it holds the new one. On failure: DataError, the temporary is
/// removed.
void write_durably(const std::filesystem::path& path, std::span<const std::span<const std::byte>> pieces,
                   FileSystem& files = system_files());

/// Creates `folder` and the missing folders above it so that they survive a power loss. Throws DataError.
void make_folder_durably(const std::filesystem::path& folder, FileSystem& files = system_files());

/// True for the name of a temporary that write_durably makes for a file with the ending `extension`, such as
/// ".safetensors".
bool is_temporary(const std::string& name, const std::string& extension);

}  // namespace sinkhorn
