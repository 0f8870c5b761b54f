// Memory for tensors: buffers come from free lists and go back when their last handle ends.
#pragma once
#include <cstddef>
#include <memory>

#include "autograd/dtype.h"

namespace sinkhorn {

/// What the pool of one device holds. All in bytes, except the last two.
struct PoolStats {
  std::size_t in_use = 0;              // in live buffers
  std::size_t peak = 0;                // largest in_use since the last reset_peak
  std::size_t reserved = 0;            // taken from the device: live buffers and free lists
  std::size_t system_allocations = 0;  // how often the device was asked; constant once a shape has been seen
  std::size_t damaged = 0;             // buffers that came back with broken guards; see Pool::guard
};

/// Bytes of main memory that the system could still give, by its own estimate; without one, the largest number.
std::size_t available_memory();

/// What a buffer of so many bytes takes of a pool: sizes are rounded up so that shapes that differ a little share
/// buffers, by at most an eighth.
std::size_t pooled_bytes(std::size_t bytes);

/// One pool per device. Safe to use from several threads.
class Pool {
 public:
  static Pool& of(Device device);

  /// An uninitialised buffer of at least `bytes`, aligned to 64 bytes or better. Throws OutOfMemory with what was asked
  /// and what is in use.
  std::shared_ptr<std::byte> allocate(std::size_t bytes);
  PoolStats stats() const;
  void reset_peak();
  /// Gives the free lists back to the device.
  void release();
  /// From now on (or no longer) every buffer stands between guard words and is at first filled with a pattern that is
  /// NaN as a number; one that comes back with a changed guard counts as damaged. For tests: a kernel that writes
  /// beside its output, or that leaves a part of it unwritten, shows.
  void guard(bool on);

  explicit Pool(Device device);
  Pool(const Pool&) = delete;

 private:
  struct State;
  std::shared_ptr<State> state_;  // buffers may outlive the pool at program exit
};

}  // namespace sinkhorn
