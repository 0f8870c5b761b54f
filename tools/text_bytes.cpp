#include "tools/text_bytes.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <csignal>
#include <cstring>
#include <mutex>
#include <utility>

#include "autograd/error.h"
#include "tools/read_file.h"

namespace sinkhorn {
namespace {

constexpr int kDataExitCode = 3;

// Beyond the end of a file that was cut short a mapping has no memory, and a read raises SIGBUS in the middle of
// whatever was reading. All that a handler may do then is to write and to leave.
class BusErrors {
 public:
  static BusErrors& the() {
    static BusErrors errors;
    return errors;
  }

  /// `line` is what is said of an access that fails in [begin, begin + size).
  void watch(const char* begin, std::size_t size, const std::string& line) {
    std::lock_guard lock(mutex_);
    const auto free = std::find_if(places_.begin(), places_.end(), [](const Place& p) { return !p.begin.load(); });
    if (free == places_.end()) return;
    free->size = size;
    free->line = line;
    free->begin = begin;
  }
  void forget(const char* begin) {
    std::lock_guard lock(mutex_);
    for (Place& place : places_)
      if (place.begin == begin) place.begin = nullptr;
  }

 private:
  struct Place {
    std::atomic<const char*> begin = nullptr;
    std::size_t size = 0;
    std::string line;
  };

  BusErrors() {
    struct sigaction action {};
    action.sa_sigaction = [](int, siginfo_t* info, void*) { the().end(static_cast<const char*>(info->si_addr)); };
    action.sa_flags = SA_SIGINFO;
    sigaction(SIGBUS, &action, &before_);
  }
  void end(const char* address) {
    for (const Place& place : places_) {
      const char* const begin = place.begin;
      if (!begin || address < begin || address >= begin + place.size) continue;
      [[maybe_unused]] const auto written = write(STDERR_FILENO, place.line.data(), place.line.size());
      _exit(kDataExitCode);
    }
    sigaction(SIGBUS, &before_, nullptr);  // none of ours: the access is made again, and ends as it would have
  }

  std::mutex mutex_;
  std::array<Place, 8> places_;
  struct sigaction before_ {};
};

struct Descriptor {
  explicit Descriptor(int number) : number(number) {}
  Descriptor(Descriptor&& other) noexcept : number(std::exchange(other.number, -1)) {}
  ~Descriptor() {
    if (number >= 0) close(number);
  }
  int number;
};

bool is_gzip(const char* bytes, std::size_t size) { return size >= 2 && std::memcmp(bytes, "\x1f\x8b", 2) == 0; }

}  // namespace

class TextBytes::Mapping {
 public:
  Mapping(Descriptor file, const struct stat& status, const char* bytes, std::string name)
      : file_(std::move(file)), status_(status), bytes_(bytes), name_(std::move(name)) {
    BusErrors::the().watch(bytes_, size(), "\nsinkhorn: " + complaint("was cut short"));
  }
  Mapping(const Mapping&) = delete;
  ~Mapping() {
    BusErrors::the().forget(bytes_);
    munmap(const_cast<char*>(bytes_), size());
  }

  std::string_view view() const { return {bytes_, size()}; }
  void require_unchanged() const {
    struct stat now {};
    const bool known = fstat(file_.number, &now) == 0;
    if (known && now.st_size == status_.st_size && now.st_mtim.tv_sec == status_.st_mtim.tv_sec &&
        now.st_mtim.tv_nsec == status_.st_mtim.tv_nsec)
      return;
    std::string line = complaint(known && now.st_size < status_.st_size ? "was cut short" : "was written to");
    line.pop_back();
    fail<DataError>(line);
  }

 private:
  std::size_t size() const { return std::size_t(status_.st_size); }
  std::string complaint(const char* event) const {
    return name_ + " " + event + " while it was in use; give a copy that nobody changes\n";
  }

  Descriptor file_;
  struct stat status_;  // as it was opened
  const char* bytes_;
  std::string name_;
};

struct TextBytes::Source {
  std::string text = {};
  std::unique_ptr<const Mapping> mapping = {};
};

TextBytes::TextBytes(std::string text) : source_(std::make_shared<Source>(Source{std::move(text)})) {}

TextBytes TextBytes::of_file(const std::string& path, const std::string& what) {
  struct stat status {};  // asked for first: to open a named pipe and close it again would end its writer
  if (path == "-" || stat(path.c_str(), &status) != 0 || !S_ISREG(status.st_mode) || status.st_size == 0)
    return TextBytes(read_file(path, what));
  Descriptor file(open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (file.number < 0 || fstat(file.number, &status) != 0 || status.st_size == 0)
    return TextBytes(read_file(path, what));
  const std::size_t size = std::size_t(status.st_size);
  std::array<char, 2> head{};
  const ssize_t read = pread(file.number, head.data(), head.size(), 0);
  if (read < 0 || is_gzip(head.data(), std::size_t(read))) return TextBytes(read_file(path, what));
  void* const bytes = mmap(nullptr, size, PROT_READ, MAP_SHARED, file.number, 0);
  if (bytes == MAP_FAILED) return TextBytes(read_file(path, what));  // not every file system can
  TextBytes result;
  result.source_ = std::make_shared<Source>(Source{
      {}, std::make_unique<Mapping>(std::move(file), status, static_cast<const char*>(bytes), what + ": " + path)});
  return result;
}

std::string_view TextBytes::view() const {
  if (!source_) return {};
  return is_mapped() ? source_->mapping->view() : std::string_view(source_->text);
}
bool TextBytes::is_mapped() const { return source_ && source_->mapping; }
void TextBytes::require_unchanged() const {
  if (is_mapped()) source_->mapping->require_unchanged();
}

}  // namespace sinkhorn
