// Batches of the steps to come, assembled on a second thread and sent to the GPU before the step asks for them.
#pragma once
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <exception>
#include <functional>
#include <mutex>
#include <thread>

#include "tools/sequence_model.h"

namespace sinkhorn {

/// Which batch a step sees is the source's doing alone, so nothing here changes a result, and to go on after an
/// interruption takes the step only.
class BatchesAhead {
 public:
  /// A pure function; called on another thread for one batch after the other.
  using Source = std::function<Batch(std::int64_t step, std::int64_t micro_step)>;

  /// Batches of steps first .. last, `accumulate` each. Those of two steps are kept ready, but no more than 64.
  BatchesAhead(Source source, std::int64_t first, std::int64_t last, std::int64_t accumulate, Device device);
  BatchesAhead(const BatchesAhead&) = delete;
  /// Waits for the batch that is being assembled, if any.
  ~BatchesAhead();

  /// The next batch, on the device if it was sent; waits where it is not ready. One that is asked for again, or out of
  /// order, is assembled at once, on this thread. Throws what the source threw for it.
  Batch get(std::int64_t step, std::int64_t micro_step);
  /// Sends the next step's batches to the device, as far as they are ready: best called where a step's work has been
  /// given to the device and is not done. Does not wait: the copies pass through page-locked memory.
  void send();

  /// How many batches are ready.
  std::size_t ready() const;
  /// How often `get` had to wait; for the first batch it always may.
  std::int64_t waits() const;

 private:
  struct Entry {
    std::int64_t step, micro_step;
    Batch batch;
    std::exception_ptr error;
  };
  void assemble(const std::stop_token& stop, std::int64_t first, std::int64_t last);

  const Source source_;
  const std::int64_t accumulate_;
  const Device device_;
  mutable std::mutex mutex_;
  std::condition_variable_any changed_;
  std::deque<Entry> ready_;
  bool ended_ = false;  // nothing follows what is ready
  std::int64_t waits_ = 0;
  std::jthread thread_;  // last: joined before what it uses is gone
};

}  // namespace sinkhorn
