#include "tools/read_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>
#include <zlib.h>

#include <cerrno>
#include <cstring>
#include <memory>

#include "autograd/error.h"

namespace sinkhorn {

std::string read_file(const std::string& path, const std::string& what) {
  const bool standard_input = path == "-";
  const std::string name = standard_input ? "standard input" : path;
  const auto refuse = [&](const auto&... why) { fail<DataError>(what, ": ", name, " ", why...); };

  const int descriptor = standard_input ? dup(STDIN_FILENO) : open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (descriptor < 0 && errno == ENOENT) refuse("does not exist; check the path");
  if (descriptor < 0) refuse("cannot be opened: ", std::strerror(errno));
  struct stat status {};
  if (fstat(descriptor, &status) == 0 && S_ISDIR(status.st_mode)) {
    close(descriptor);
    refuse("is a folder; name one file");
  }
  // zlib hands files that are not gzip through as they are.
  const std::unique_ptr<gzFile_s, int (*)(gzFile)> file(gzdopen(descriptor, "rb"), gzclose_r);
  if (!file) {
    close(descriptor);
    throw OutOfMemory(what + ": no memory to read " + name);
  }
  gzbuffer(file.get(), 1 << 17);
  std::string bytes;
  for (;;) {
    constexpr unsigned chunk = 1 << 20;
    const std::size_t before = bytes.size();
    bytes.resize(before + chunk);
    const int count = gzread(file.get(), bytes.data() + before, chunk);
    bytes.resize(before + std::size_t(count < 0 ? 0 : count));
    int code = Z_OK;
    const char* reason = gzerror(file.get(), &code);
    // A gzip stream that stops early is reported only beside the bytes that came before the cut.
    if (code == Z_BUF_ERROR) refuse("is a gzip file that ends too early; fetch it again");
    if (code == Z_ERRNO) refuse("cannot be read: ", std::strerror(errno));
    if (count < 0) refuse("is a damaged gzip file (", reason, "); fetch it again");
    if (count == 0) return bytes;
  }
}

}  // namespace sinkhorn
