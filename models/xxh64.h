// XXH64, a fast 64-bit hash that tells damaged bytes from whole ones (it does not stop a forger).
#pragma once
#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <string_view>

namespace sinkhorn {

/// The hash of `bytes`; `seed` chains: xxh64(b, xxh64(a)) depends on both. Source: the xxHash specification, XXH64.
inline std::uint64_t xxh64(std::span<const std::byte> bytes, std::uint64_t seed = 0) {
  static_assert(std::endian::native == std::endian::little);
  constexpr std::uint64_t p1 = 0x9E3779B185EBCA87, p2 = 0xC2B2AE3D27D4EB4F, p3 = 0x165667B19E3779F9,
                          p4 = 0x85EBCA77C2B2AE63, p5 = 0x27D4EB2F165667C5;
  const auto take = [&bytes]<class Word>(Word word) {
    std::memcpy(&word, bytes.data(), sizeof word);
    bytes = bytes.subspan(sizeof word);
    return static_cast<std::uint64_t>(word);
  };
  const auto round = [](std::uint64_t lane, std::uint64_t word) { return std::rotl(lane + word * p2, 31) * p1; };

  const std::uint64_t size = bytes.size();
  std::uint64_t hash = seed + p5;
  if (size >= 32) {
    std::array<std::uint64_t, 4> lanes = {seed + p1 + p2, seed + p2, seed, seed - p1};
    while (bytes.size() >= 32)
      for (std::uint64_t& lane : lanes) lane = round(lane, take(std::uint64_t{}));
    hash = std::rotl(lanes[0], 1) + std::rotl(lanes[1], 7) + std::rotl(lanes[2], 12) + std::rotl(lanes[3], 18);
    for (const std::uint64_t lane : lanes) hash = (hash ^ round(0, lane)) * p1 + p4;
  }
  hash += size;
  while (bytes.size() >= 8) hash = std::rotl(hash ^ round(0, take(std::uint64_t{})), 27) * p1 + p4;
  if (bytes.size() >= 4) hash = std::rotl(hash ^ take(std::uint32_t{}) * p1, 23) * p2 + p3;
  while (!bytes.empty()) hash = std::rotl(hash ^ take(std::uint8_t{}) * p5, 11) * p1;
  hash = (hash ^ hash >> 33) * p2;
  hash = (hash ^ hash >> 29) * p3;
  return hash ^ hash >> 32;
}

inline std::uint64_t xxh64(std::string_view text, std::uint64_t seed = 0) {
  return xxh64(std::as_bytes(std::span(text)), seed);
}

}  // namespace sinkhorn
