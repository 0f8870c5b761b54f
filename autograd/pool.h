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
  friend class Arena;
  struct State;
  std::shared_ptr<State> state_;  // buffers may outlive the pool at program exit
};

/// A part of a device's pool that is kept for work which is recorded once and repeated (autograd/graph.h): a block that
/// came here is lent to nobody else as long as the arena, or a buffer from it, is there. It takes blocks from the
/// pool's free lists first, so that work which ran before it is recorded leaves what it needs.
class Arena {
 public:
  explicit Arena(Device device);
  ~Arena();
  Arena(const Arena&) = delete;
  /// While it lives, buffers of the device that this thread asks for lie in the arena, without guards. Not nested. Work
  /// that is not recorded may use it between launches, if it leaves nothing behind: a launch writes there again.
  class Use {
   public:
    explicit Use(const Arena& arena);
    ~Use();
    Use(const Use&) = delete;
  };

  /// Whether this thread's buffers lie in an arena now, where nothing lasts.
  static bool is_in_use();
  /// Largest number of bytes in its live buffers since the last reset_peak.
  std::size_t peak() const;
  void reset_peak() const;
  /// Work is repeated whose recording had this peak: the pool's own peak takes note, since nobody allocates.
  void repeat(std::size_t peak) const;

 private:
  friend class Pool;
  struct State;
  std::shared_ptr<State> state_;
};

}  // namespace sinkhorn
