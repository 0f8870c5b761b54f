// Work on several threads with results that do not depend on how many there are: chunks are cut by size alone.
#pragma once
#include <cstdint>
#include <functional>

namespace sinkhorn {

/// Calls body(begin, end) for consecutive chunks of `grain` items that cover 0 .. count-1. Chunks run in any order on
/// any thread, so a body writes only what belongs to its items. A nested call runs on the calling thread. The first
/// exception thrown by a body is rethrown here.
void parallel_for(std::int64_t count, std::int64_t grain,
                  const std::function<void(std::int64_t begin, std::int64_t end)>& body);

/// Threads used from now on, the caller included; at least 1. The default is the number of processors.
void set_threads(int threads);
int threads();

/// Items per chunk so that a chunk touches about 32,768 elements when each item touches `elements_per_item`.
constexpr std::int64_t grain_for(std::int64_t elements_per_item) {
  const std::int64_t items = 32768 / (elements_per_item > 0 ? elements_per_item : 1);
  return items > 0 ? items : 1;
}

}  // namespace sinkhorn
