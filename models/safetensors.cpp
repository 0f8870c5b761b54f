#include "models/safetensors.h"

#include <fcntl.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cerrno>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <limits>
#include <new>
#include <nlohmann/json.hpp>
#include <optional>
#include <sstream>
#include <type_traits>
#include <utility>

#include "autograd/error.h"
#include "models/xxh64.h"

namespace sinkhorn::safetensors {
namespace {

static_assert(std::endian::native == std::endian::little, "safetensors data is little-endian");

struct TypeRow {
  Type type;
  std::string_view name;
  std::size_t size;
};
constexpr std::array<TypeRow, 13> type_rows = {{{Type::F64, "F64", 8},
                                                {Type::F32, "F32", 4},
                                                {Type::F16, "F16", 2},
                                                {Type::BF16, "BF16", 2},
                                                {Type::I64, "I64", 8},
                                                {Type::I32, "I32", 4},
                                                {Type::I16, "I16", 2},
                                                {Type::I8, "I8", 1},
                                                {Type::U64, "U64", 8},
                                                {Type::U32, "U32", 4},
                                                {Type::U16, "U16", 2},
                                                {Type::U8, "U8", 1},
                                                {Type::BOOL, "BOOL", 1}}};
const TypeRow& row(Type type) { return type_rows[static_cast<std::size_t>(type)]; }

/// Text of a file made fit for a one-line message: printable ASCII in quotes, shortened.
std::string printable(std::string_view text) {
  constexpr std::size_t limit = 160;
  constexpr std::string_view hex = "0123456789abcdef";
  std::string out = "'";
  for (const char c : text.substr(0, limit)) {
    const auto byte = static_cast<unsigned char>(c);
    if (byte >= 0x20 && byte < 0x7f)
      out += c;
    else
      out += {'\\', 'x', hex[byte >> 4], hex[byte & 15]};
  }
  return out + (text.size() > limit ? "...'" : "'");
}

template <class... Parts>
[[noreturn]] void refuse(const std::string& path, const Parts&... parts) {
  fail<DataError>(path, ": ", parts..., "; the file is damaged or not a safetensors file of ours, use another copy");
}

/// The bytes of a tensor, or nothing where they overflow. A zero extent counts as one towards overflow, so that no
/// product of a part of the extents (a stride, a row count) can overflow either.
std::optional<std::uint64_t> byte_count(Type type, std::span<const std::int64_t> shape) {
  std::int64_t bound = static_cast<std::int64_t>(type_size(type));
  bool empty = false;
  for (const std::int64_t extent : shape) {
    empty = empty || extent == 0;
    if (__builtin_mul_overflow(bound, std::max<std::int64_t>(extent, 1), &bound)) return std::nullopt;
  }
  return empty ? 0 : static_cast<std::uint64_t>(bound);
}

/// Builds a File from the events of the JSON header. The header has one shape, {"name": {"dtype": "F32", "shape": [2,
/// 3], "data_offsets": [0, 24]}, "__metadata__": {"key": "text"}}, so nesting is bounded by the states themselves.
class HeaderReader : public nlohmann::json_sax<nlohmann::json> {
 public:
  HeaderReader(File& file, std::uint64_t data_bytes) : file_(file), data_bytes_(data_bytes) {}

  bool start_object(std::size_t) override {
    if (at_ == At::start)
      at_ = At::tensors;
    else if (at_ == At::tensors && key_ == "__metadata__")
      at_ = At::metadata;
    else if (at_ == At::tensors)
      at_ = At::tensor, fields_ = 0, entry_ = {}, entry_.name = key_, offsets_ = {};
    else
      misplaced("an object");
    return true;
  }
  bool end_object() override {
    if (at_ == At::tensor) finish_tensor();
    at_ = at_ == At::tensors ? At::end : At::tensors;
    return true;
  }
  bool start_array(std::size_t) override {
    if (at_ == At::tensor && field_ == shape_field)
      at_ = At::shape;
    else if (at_ == At::tensor && field_ == offsets_field)
      at_ = At::offsets;
    else
      misplaced("a list");
    return true;
  }
  bool end_array() override {
    at_ = At::tensor;
    return true;
  }
  bool key(string_t& name) override {
    if (at_ == At::tensor) {
      field_ = name == "dtype"          ? dtype_field
               : name == "shape"        ? shape_field
               : name == "data_offsets" ? offsets_field
                                        : 0;
      if (field_ == 0) refuse_tensor("has an unknown field ", printable(name));
      if (fields_ & field_) refuse_tensor("has the field ", name, " twice");
      fields_ |= field_;
    } else if (at_ == At::metadata) {
      metadata_key_ = name;
      if (file_.metadata.contains(name)) refuse(file_.path, "the metadata has the key ", printable(name), " twice");
    } else {
      key_ = name;
      if (name == "__metadata__" && std::exchange(has_metadata_, true))
        refuse(file_.path, "__metadata__ appears twice");
    }
    return true;
  }
  bool string(string_t& text) override {
    if (at_ == At::metadata)
      file_.metadata.emplace(metadata_key_, text);
    else if (at_ == At::tensor && field_ == dtype_field)
      entry_.type = type_of(text);
    else
      misplaced("text");
    return true;
  }
  bool number_unsigned(number_unsigned_t number) override {
    if (at_ == At::shape) {
      if (number > static_cast<std::uint64_t>(std::numeric_limits<std::int64_t>::max()))
        refuse_tensor("has the extent ", number, ", beyond 2^63 - 1");
      if (entry_.shape.size() == max_rank) refuse_tensor("has more than ", max_rank, " dimensions");
      entry_.shape.push_back(static_cast<std::int64_t>(number));
    } else if (at_ == At::offsets) {
      if (offsets_.size() == 2) refuse_tensor("has more than two data_offsets");
      offsets_.push_back(number);
    } else {
      misplaced("a number");
    }
    return true;
  }
  bool number_integer(number_integer_t number) override {  // only negative ones arrive here
    if (at_ == At::shape) refuse_tensor("has the negative extent ", number);
    if (at_ == At::offsets) refuse_tensor("has the negative data offset ", number);
    misplaced("a number");
  }
  bool number_float(number_float_t, const string_t& text) override {
    if (at_ == At::shape || at_ == At::offsets) refuse_tensor("has ", printable(text), " where an integer is needed");
    misplaced("a number");
  }
  bool boolean(bool) override { misplaced("a boolean"); }
  bool null() override { misplaced("null"); }
  bool binary(binary_t&) override { misplaced("binary data"); }
  bool parse_error(std::size_t position, const std::string&, const nlohmann::json::exception& error) override {
    std::string_view why = error.what();
    why.remove_prefix(std::min(why.find("] ") + 2, why.size()));
    refuse(file_.path, "the header is not JSON in UTF-8 at its byte ", position, ": ", printable(why));
  }

 private:
  enum class At { start, tensors, metadata, tensor, shape, offsets, end };
  static constexpr int dtype_field = 1, shape_field = 2, offsets_field = 4;

  template <class... Parts>
  [[noreturn]] void refuse_tensor(const Parts&... parts) const {
    refuse(file_.path, "tensor ", printable(entry_.name), " ", parts...);
  }
  [[noreturn]] void misplaced(const char* what) const {
    switch (at_) {
      case At::metadata:
        refuse(file_.path, "the metadata of ", printable(metadata_key_), " is ", what, ", not text");
      case At::tensors:
        refuse(file_.path, "the entry ", printable(key_), " is ", what, ", not an object");
      default:
        refuse_tensor("has ", what, " in ",
                      field_ == dtype_field   ? "dtype"
                      : field_ == shape_field ? "shape"
                                              : "data_offsets");
    }
  }
  Type type_of(const std::string& text) const {
    std::string known;
    for (const TypeRow& each : type_rows) {
      if (each.name == text) return each.type;
      known.append(known.empty() ? "" : ", ").append(each.name);
    }
    refuse_tensor("has the unknown dtype ", printable(text), " (known: ", known, ")");
  }
  void finish_tensor() {
    for (const auto& [field, name] :
         {std::pair(dtype_field, "dtype"), {shape_field, "shape"}, {offsets_field, "data_offsets"}})
      if (!(fields_ & field)) refuse_tensor("has no ", name);
    if (offsets_.size() != 2) refuse_tensor("has ", offsets_.size(), " data_offsets instead of two");
    const std::uint64_t begin = offsets_[0], end = offsets_[1];
    if (begin > end) refuse_tensor("ends at byte ", end, ", before it begins at ", begin);
    if (end > data_bytes_)
      refuse_tensor("ends at byte ", end, " of a data area of ", data_bytes_, " bytes (truncated?)");
    const auto bytes = byte_count(entry_.type, entry_.shape);
    if (!bytes) refuse_tensor("has a shape whose size overflows");
    if (*bytes != end - begin)
      refuse_tensor("needs ", *bytes, " bytes by its shape and dtype but its data_offsets span ", end - begin);
    entry_.begin = begin;
    entry_.end = end;
    file_.entries.push_back(std::move(entry_));
  }

  File& file_;
  std::uint64_t data_bytes_;
  At at_ = At::start;
  bool has_metadata_ = false;
  std::string key_, metadata_key_;
  int field_ = 0, fields_ = 0;  // the field being read, and those seen in this tensor
  Entry entry_;
  std::vector<std::uint64_t> offsets_;
};

constexpr std::size_t prefix_bytes = 8;

/// The header's length from the first eight bytes of a file of `size` bytes.
std::uint64_t header_bytes(const std::string& path, std::span<const std::byte, prefix_bytes> prefix,
                           std::uint64_t size) {
  std::uint64_t length = 0;
  std::memcpy(&length, prefix.data(), prefix_bytes);
  if (length > max_header_bytes)
    refuse(path, "the header's length is given as ", length, " bytes, more than the limit of ", max_header_bytes);
  if (length > size - prefix_bytes)
    refuse(path, "the header's length is given as ", length, " bytes but only ", size - prefix_bytes, " follow");
  return length;
}

void require_prefix(const std::string& path, std::uint64_t size) {
  if (size < prefix_bytes)
    refuse(path, "has ", size, " bytes, fewer than the ", prefix_bytes, " that every file begins with");
}

File parse_header(std::string path, std::string_view header, std::uint64_t data_bytes) {
  File file{.path = std::move(path), .metadata = {}, .entries = {}, .data = {}, .storage = {}};
  if (!header.starts_with('{')) refuse(file.path, "the header does not begin with '{'");
  // The JSON library takes a NUL for the end of its input and would not look at what follows.
  if (const auto nul = header.find('\0'); nul != header.npos)
    refuse(file.path, "the header has a NUL at its byte ", nul);
  HeaderReader reader(file, data_bytes);
  nlohmann::json::sax_parse(header.begin(), header.end(), &reader);

  auto& entries = file.entries;
  std::sort(entries.begin(), entries.end(),
            [](const Entry& a, const Entry& b) { return std::pair(a.begin, a.end) < std::pair(b.begin, b.end); });
  std::uint64_t covered = 0;
  for (const Entry& entry : entries) {
    if (entry.begin != covered)
      refuse(file.path, "tensor ", printable(entry.name), " begins at byte ", entry.begin, " of the data, which ",
             entry.begin < covered ? "overlaps" : "leaves a hole after", " the tensor before it, ending at ", covered);
    covered = entry.end;
  }
  if (covered != data_bytes)
    refuse(file.path, "the tensors end at byte ", covered, " of a data area of ", data_bytes, " bytes");

  const auto by_name = [](const Entry& a, const Entry& b) { return a.name < b.name; };
  std::sort(entries.begin(), entries.end(), by_name);
  const auto same = [](const Entry& a, const Entry& b) { return a.name == b.name; };
  if (const auto twice = std::adjacent_find(entries.begin(), entries.end(), same); twice != entries.end())
    refuse(file.path, "tensor ", printable(twice->name), " appears twice");
  return file;
}

double half_value(std::uint16_t bits) {
  const int exponent = bits >> 10 & 31, fraction = bits & 1023;
  const double size =
      exponent == 31  ? (fraction ? std::numeric_limits<double>::quiet_NaN() : std::numeric_limits<double>::infinity())
      : exponent == 0 ? std::ldexp(fraction, -24)
                      : std::ldexp(1024 + fraction, exponent - 25);
  return bits & 0x8000 ? -size : size;
}

/// Calls `take(element)` for each element of the tensor, in the C++ type nearest to its stored one.
template <class Take>
void for_each_element(const File& file, const Entry& entry, Take take) {
  const auto walk = [&]<class Stored>(Stored stored, auto value) {
    const std::span<const std::byte> bytes = file.bytes(entry);
    for (std::size_t at = 0; at < bytes.size(); at += sizeof stored) {
      std::memcpy(&stored, bytes.data() + at, sizeof stored);
      take(value(stored));
    }
  };
  const auto same = [](auto stored) { return stored; };
  switch (entry.type) {
    case Type::F64:
      return walk(double{}, same);
    case Type::F32:
      return walk(float{}, same);
    case Type::F16:
      return walk(std::uint16_t{}, half_value);
    case Type::BF16:
      return walk(std::uint16_t{}, [](std::uint16_t bits) { return std::bit_cast<float>(std::uint32_t{bits} << 16); });
    case Type::I64:
      return walk(std::int64_t{}, same);
    case Type::I32:
      return walk(std::int32_t{}, same);
    case Type::I16:
      return walk(std::int16_t{}, same);
    case Type::I8:
      return walk(std::int8_t{}, same);
    case Type::U64:
      return walk(std::uint64_t{}, same);
    case Type::U32:
      return walk(std::uint32_t{}, same);
    case Type::U16:
      return walk(std::uint16_t{}, same);
    case Type::U8:
      return walk(std::uint8_t{}, same);
    case Type::BOOL:
      return walk(std::uint8_t{}, [](std::uint8_t byte) { return byte != 0; });
  }
}

template <class Element>
std::vector<Element> convert(const File& file, const Entry& entry) {
  std::vector<Element> out;
  out.reserve((entry.end - entry.begin) / type_size(entry.type));
  for_each_element(file, entry, [&](auto element) {
    if constexpr (std::is_integral_v<Element>) {
      if constexpr (std::is_floating_point_v<decltype(element)>)
        fail<DataError>(file.path, ": tensor ", printable(entry.name), " is ", type_name(entry.type),
                        " where integers are expected");
      else if (!std::in_range<Element>(
                   static_cast<std::conditional_t<std::is_same_v<decltype(element), bool>, int, decltype(element)>>(
                       element)))
        fail<DataError>(file.path, ": tensor ", printable(entry.name), " holds ", +element, ", beyond 2^63 - 1");
    }
    out.push_back(static_cast<Element>(element));
  });
  return out;
}

/// The JSON header for `items` in the order given, padded so that the data begins at a multiple of 8 bytes.
std::string header_of(const std::string& path, const Metadata& metadata, std::span<const Item* const> items) {
  const auto json = [&](const std::string& text) {
    try {
      return nlohmann::json(text).dump();
    } catch (const nlohmann::json::exception&) {
      fail("cannot write ", path, ": ", printable(text), " is not valid UTF-8");
    }
  };
  std::ostringstream out;
  out << "{\"__metadata__\":{";
  for (const char* separator = ""; const auto& [key, value] : metadata)
    out << std::exchange(separator, ",") << json(key) << ":" << json(value);
  out << "}";
  std::uint64_t begin = 0;
  for (const Item* item : items) {
    out << "," << json(item->name) << ":{\"dtype\":\"" << type_name(item->type) << "\",\"shape\":[";
    for (const char* separator = ""; const std::int64_t extent : item->shape)
      out << std::exchange(separator, ",") << extent;
    const std::uint64_t end = begin + item->bytes.size();
    out << "],\"data_offsets\":[" << begin << "," << end << "]}";
    begin = end;
  }
  out << "}";
  std::string header = out.str();
  header.resize((header.size() + 7) / 8 * 8, ' ');
  if (header.size() > max_header_bytes)
    fail("cannot write ", path, ": its header would exceed ", max_header_bytes, " bytes");
  return header;
}

std::string hex(std::uint64_t hash) {
  char text[17];
  std::snprintf(text, sizeof text, "%016llx", static_cast<unsigned long long>(hash));
  return text;
}

std::string tensor_digest(Type type, std::span<const std::int64_t> shape, std::span<const std::byte> bytes) {
  std::string description(type_name(type));
  for (const std::int64_t extent : shape) description.append(" ").append(std::to_string(extent));
  return hex(xxh64(bytes, xxh64(description)));
}

/// Of every pair but the digest itself, so also of the tensors' digests.
std::string metadata_digest(const Metadata& metadata) {
  std::uint64_t hash = 0;
  for (const auto& [key, value] : metadata)
    if (key != "digest") hash = xxh64(value, xxh64(key, hash));
  return hex(hash);
}

}  // namespace

std::string_view type_name(Type type) { return row(type).name; }
std::size_t type_size(Type type) { return row(type).size; }

const Entry* File::find(std::string_view name) const {
  const auto at = std::lower_bound(entries.begin(), entries.end(), name,
                                   [](const Entry& entry, std::string_view wanted) { return entry.name < wanted; });
  return at != entries.end() && at->name == name ? &*at : nullptr;
}

const Entry& File::require(std::string_view name) const {
  const Entry* entry = find(name);
  if (entry == nullptr) fail<DataError>(path, ": has no tensor ", printable(name), "; it was made for something else");
  return *entry;
}

File parse(std::span<const std::byte> bytes, std::string name) {
  require_prefix(name, bytes.size());
  const std::uint64_t length = header_bytes(name, bytes.first<prefix_bytes>(), bytes.size());
  const auto header = bytes.subspan(prefix_bytes, length), data = bytes.subspan(prefix_bytes + length);
  File file = parse_header(std::move(name), {reinterpret_cast<const char*>(header.data()), header.size()}, data.size());
  file.data = data;
  return file;
}

File read(const std::filesystem::path& path, FileSystem& files) {
  const std::string name = path.string();
  OpenFile open(files, path, O_RDONLY | O_NONBLOCK);  // a named pipe must not make us wait for a writer
  if (!open) fail_file("open", path, errno);
  struct stat status {};
  if (files.status(open.get(), status) != 0) fail_file("examine", path, errno);
  if (!S_ISREG(status.st_mode)) fail<DataError>(name, ": is not a file; give the path of a .safetensors file");
  const auto fill = [&](std::span<std::byte> into) {
    while (!into.empty()) {
      const ssize_t got = files.read(open.get(), into);
      if (got < 0 && errno == EINTR) continue;
      if (got < 0) fail_file("read", path, errno);
      if (got == 0) refuse(name, "became shorter while it was read");
      into = into.subspan(static_cast<std::size_t>(got));
    }
  };
  const auto size = static_cast<std::uint64_t>(status.st_size);
  require_prefix(name, size);
  std::array<std::byte, prefix_bytes> prefix;
  fill(prefix);
  std::string header(header_bytes(name, prefix, size), '\0');
  fill(std::as_writable_bytes(std::span(header)));
  const std::uint64_t data_bytes = size - prefix_bytes - header.size();
  File file = parse_header(name, header, data_bytes);
  try {
    std::shared_ptr<std::byte[]> storage(new std::byte[data_bytes]);
    file.data = {storage.get(), data_bytes};
    fill({storage.get(), data_bytes});
    file.storage = std::move(storage);
  } catch (const std::bad_alloc&) {
    fail<OutOfMemory>(name, ": no memory for its ", data_bytes, " bytes of tensors; free some memory");
  }
  return file;
}

std::vector<double> as_f64(const File& file, const Entry& entry) { return convert<double>(file, entry); }
std::vector<float> as_f32(const File& file, const Entry& entry) { return convert<float>(file, entry); }
std::vector<std::int64_t> as_i64(const File& file, const Entry& entry) { return convert<std::int64_t>(file, entry); }

void write(const std::filesystem::path& path, const Metadata& metadata, std::span<const Item> items,
           FileSystem& files) {
  const std::string name = path.string();
  std::vector<const Item*> order;
  for (const Item& item : items) {
    const auto bytes = byte_count(item.type, item.shape);
    const bool negative = std::any_of(item.shape.begin(), item.shape.end(), [](std::int64_t n) { return n < 0; });
    if (negative || item.shape.size() > max_rank || bytes != item.bytes.size())
      fail("cannot write ", name, ": the shape of tensor ", printable(item.name), " does not describe its ",
           item.bytes.size(), " bytes");
    if (item.name == "__metadata__") fail("cannot write ", name, ": no tensor may be called __metadata__");
    order.push_back(&item);
  }
  std::sort(order.begin(), order.end(), [](const Item* a, const Item* b) { return a->name < b->name; });
  const auto same = [](const Item* a, const Item* b) { return a->name == b->name; };
  if (const auto twice = std::adjacent_find(order.begin(), order.end(), same); twice != order.end())
    fail("cannot write ", name, ": two tensors are called ", printable((*twice)->name));
  std::stable_sort(order.begin(), order.end(),
                   [](const Item* a, const Item* b) { return type_size(a->type) > type_size(b->type); });

  const std::string header = header_of(name, metadata, order);
  const std::uint64_t length = header.size();
  std::vector<std::span<const std::byte>> pieces = {std::as_bytes(std::span(&length, 1)),
                                                    std::as_bytes(std::span(header))};
  for (const Item* item : order) pieces.push_back(item->bytes);
  write_durably(path, pieces, files);
}

Metadata with_digests(Metadata metadata, std::span<const Item> items) {
  for (const Item& item : items) metadata["digest." + item.name] = tensor_digest(item.type, item.shape, item.bytes);
  metadata["digest"] = metadata_digest(metadata);
  return metadata;
}

void verify(const File& file) {
  const auto stored = file.metadata.find("digest");
  if (stored == file.metadata.end()) refuse(file.path, "the metadata has no digest");
  if (stored->second != metadata_digest(file.metadata)) refuse(file.path, "the metadata does not match its digest");
  for (const Entry& entry : file.entries) {
    const auto digest = file.metadata.find("digest." + entry.name);
    if (digest == file.metadata.end()) refuse(file.path, "tensor ", printable(entry.name), " has no digest");
    if (digest->second != tensor_digest(entry.type, entry.shape, file.bytes(entry)))
      refuse(file.path, "tensor ", printable(entry.name), " does not match its digest");
  }
  for (const auto& [key, value] : file.metadata)
    if (key.starts_with("digest.") && file.find(std::string_view(key).substr(7)) == nullptr)
      refuse(file.path, "tensor ", printable(key.substr(7)), " is missing");
}

}  // namespace sinkhorn::safetensors
