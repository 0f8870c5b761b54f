// The bytes of a text: in memory, or those of a file, mapped, so that a text may be larger than memory.
#pragma once
#include <memory>
#include <string>
#include <string_view>

namespace sinkhorn {

/// Copies share the bytes.
class TextBytes {
 public:
  TextBytes() = default;
  explicit TextBytes(std::string text);
  /// A plain file is mapped; what cannot be (a gzip file, which is unpacked; "-"; a pipe) is read as `read_file` reads
  /// it, with its errors. If another program cuts a mapped file short while its bytes are being read, this one ends
  /// with a line that says so and the exit code of bad data (3).
  static TextBytes of_file(const std::string& path, const std::string& what);

  std::string_view view() const;
  bool is_mapped() const;
  /// Throws DataError if the mapped file was written to since it was opened: what was read of it may be from two texts.
  void require_unchanged() const;

 private:
  class Mapping;
  struct Source;
  std::shared_ptr<const Source> source_;
};

}  // namespace sinkhorn
