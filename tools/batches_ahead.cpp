#include "tools/batches_ahead.h"

#include <algorithm>
#include <utility>

namespace sinkhorn {

BatchesAhead::BatchesAhead(Source source, std::int64_t first, std::int64_t last, std::int64_t accumulate, Device device)
    : source_(std::move(source)),
      accumulate_(accumulate),
      device_(device),
      thread_([this, first, last](const std::stop_token& stop) { assemble(stop, first, last); }) {}

BatchesAhead::~BatchesAhead() = default;

void BatchesAhead::assemble(const std::stop_token& stop, std::int64_t first, std::int64_t last) {
  const std::size_t room = std::size_t(std::min<std::int64_t>(2 * accumulate_, 64));
  bool failed = false;
  for (std::int64_t i = 0; i < (last - first + 1) * accumulate_ && !failed; ++i) {
    {
      std::unique_lock lock(mutex_);
      if (!changed_.wait(lock, stop, [&] { return ready_.size() < room; })) return;
    }
    Entry entry{first + i / accumulate_, i % accumulate_, {}, nullptr};
    try {
      entry.batch = source_(entry.step, entry.micro_step);
    } catch (...) {
      entry.error = std::current_exception();
      failed = true;
    }
    {
      std::lock_guard lock(mutex_);
      ready_.push_back(std::move(entry));
    }
    changed_.notify_all();
  }
  {
    std::lock_guard lock(mutex_);
    ended_ = true;
  }
  changed_.notify_all();
}

Batch BatchesAhead::get(std::int64_t step, std::int64_t micro_step) {
  std::unique_lock lock(mutex_);
  if (ready_.empty() && !ended_) {
    ++waits_;
    changed_.wait(lock, [&] { return !ready_.empty() || ended_; });
  }
  if (ready_.empty() || ready_.front().step != step || ready_.front().micro_step != micro_step) {
    lock.unlock();
    return source_(step, micro_step);
  }
  Entry entry = std::move(ready_.front());
  ready_.pop_front();
  lock.unlock();
  changed_.notify_all();
  if (entry.error) std::rethrow_exception(entry.error);
  return entry.batch;
}

void BatchesAhead::send() {
  if (device_ == Device::cpu) return;
  std::lock_guard lock(mutex_);
  for (Entry& entry : ready_)
    if (entry.step == ready_.front().step && !entry.error) entry.batch = entry.batch.to(device_);
}

std::int64_t BatchesAhead::waits() const {
  std::lock_guard lock(mutex_);
  return waits_;
}

std::size_t BatchesAhead::ready() const {
  std::lock_guard lock(mutex_);
  return ready_.size();
}

}  // namespace sinkhorn
