// safetensors files: a strict reader that trusts nothing in the file, and a writer that survives crashes.
#pragma once
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "models/durable_file.h"

namespace sinkhorn::safetensors {

enum class Type { F64, F32, F16, BF16, I64, I32, I16, I8, U64, U32, U16, U8, BOOL };
std::string_view type_name(Type type);
std::size_t type_size(Type type);  ///< bytes of one element

inline constexpr std::size_t max_rank = 6;
inline constexpr std::uint64_t max_header_bytes = 100'000'000;
using Metadata = std::map<std::string, std::string>;

/// One tensor of a file: its bytes are [begin, end) of the data area, little-endian and row-major.
struct Entry {
  std::string name;
  Type type = Type::F32;
  std::vector<std::int64_t> shape;
  std::size_t begin = 0, end = 0;
};

/// A file that passed every rule: known types, rank <= 6, extents >= 0, and entries that tile the data area exactly.
struct File {
  std::string path;  ///< as shown in messages
  Metadata metadata;
  std::vector<Entry> entries;  ///< sorted by name
  std::span<const std::byte> data;
  std::shared_ptr<const std::byte[]> storage;  ///< what `data` points into, empty after parse()

  const Entry* find(std::string_view name) const;     ///< nullptr if absent
  const Entry& require(std::string_view name) const;  ///< DataError naming file and tensor if absent
  std::span<const std::byte> bytes(const Entry& entry) const {
    return data.subspan(entry.begin, entry.end - entry.begin);
  }
};

/// Reads a whole file. Every broken rule is a DataError that names the file, the tensor and the rule; the header is
/// checked before the data is read, and nothing is allocated that the file's real size does not bound.
File read(const std::filesystem::path& path, FileSystem& files = system_files());
/// The same checks on bytes in memory, which must outlive the result; `name` stands in messages.
File parse(std::span<const std::byte> bytes, std::string name);

/// The elements of a tensor, row-major. as_f64 and as_f32 convert every type (to the nearest value); as_i64 converts
/// integers and booleans exactly and throws DataError for the others.
std::vector<double> as_f64(const File& file, const Entry& entry);
std::vector<float> as_f32(const File& file, const Entry& entry);
std::vector<std::int64_t> as_i64(const File& file, const Entry& entry);

/// A tensor to write; `bytes` holds its elements, little-endian and row-major.
struct Item {
  std::string name;
  Type type = Type::F32;
  std::vector<std::int64_t> shape;
  std::span<const std::byte> bytes;
  std::shared_ptr<const void> owner = {};  ///< keeps the bytes alive; empty if the caller does
};

/// Writes a file durably (see write_durably): wider types first, so that every tensor is aligned. Throws Error for
/// items that no reader would accept (sizes, duplicate names, text that is not UTF-8), DataError where the disk fails.
void write(const std::filesystem::path& path, const Metadata& metadata, std::span<const Item> items,
           FileSystem& files = system_files());

/// `metadata` with a digest for every item ("digest.NAME") and one for the metadata itself ("digest").
Metadata with_digests(Metadata metadata, std::span<const Item> items);
/// Throws DataError naming the first tensor whose digest is missing or differs, or the metadata if that is damaged.
void verify(const File& file);

}  // namespace sinkhorn::safetensors
