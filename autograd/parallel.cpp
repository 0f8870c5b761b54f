#include "autograd/parallel.h"

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <exception>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

namespace sinkhorn {
namespace {

thread_local bool inside_parallel_for = false;

// One call of parallel_for: chunks are taken from `next` until none is left.
struct Job {
  std::int64_t count, grain, chunks;
  const std::function<void(std::int64_t, std::int64_t)>& body;
  std::atomic<std::int64_t> next{0};
  std::exception_ptr error = nullptr;
  std::mutex error_mutex = {};

  void work() {
    inside_parallel_for = true;
    for (std::int64_t chunk; (chunk = next.fetch_add(1)) < chunks;) {
      try {
        body(chunk * grain, std::min(count, (chunk + 1) * grain));
      } catch (...) {
        std::lock_guard lock(error_mutex);
        if (!error) error = std::current_exception();
        next = chunks;
      }
    }
    inside_parallel_for = false;
  }
};

class Workers {
 public:
  explicit Workers(int count) {
    for (int i = 0; i < count; ++i) threads_.emplace_back([this](std::stop_token stop) { loop(stop); });
  }

  // The caller works too, then waits until every worker has left the job.
  void run(Job& job) {
    {
      std::lock_guard lock(mutex_);
      job_ = &job;
      ++generation_;
      busy_ = int(threads_.size());
    }
    wake_.notify_all();
    job.work();
    std::unique_lock lock(mutex_);
    done_.wait(lock, [&] { return busy_ == 0; });
  }

 private:
  void loop(std::stop_token stop) {
    std::uint64_t seen = 0;
    for (;;) {
      Job* job = nullptr;
      {
        std::unique_lock lock(mutex_);
        if (!wake_.wait(lock, stop, [&] { return generation_ != seen; })) return;
        seen = generation_;
        job = job_;
      }
      job->work();
      std::lock_guard lock(mutex_);
      if (--busy_ == 0) done_.notify_one();
    }
  }

  std::mutex mutex_;
  std::condition_variable_any wake_;
  std::condition_variable done_;
  Job* job_ = nullptr;
  std::uint64_t generation_ = 0;
  int busy_ = 0;
  std::vector<std::jthread> threads_;  // last: joined before the members they use are gone
};

std::mutex run_mutex;  // one parallel_for at a time; guards the two below
int thread_count = std::max(1, int(std::thread::hardware_concurrency()));
std::unique_ptr<Workers> workers;

}  // namespace

void set_threads(int count) {
  std::lock_guard lock(run_mutex);
  thread_count = std::max(1, count);
  workers.reset();
}

int threads() {
  std::lock_guard lock(run_mutex);
  return thread_count;
}

void parallel_for(std::int64_t count, std::int64_t grain, const std::function<void(std::int64_t, std::int64_t)>& body) {
  if (count <= 0) return;
  grain = std::max<std::int64_t>(grain, 1);
  Job job{count, grain, (count + grain - 1) / grain, body};
  if (inside_parallel_for) {  // the same chunks, one after the other
    for (std::int64_t begin = 0; begin < count; begin += grain) body(begin, std::min(count, begin + grain));
    return;
  }
  if (job.chunks == 1) return body(0, count);  // calls nested in it may still be spread
  {
    std::lock_guard lock(run_mutex);
    if (thread_count > 1 && !workers) workers = std::make_unique<Workers>(thread_count - 1);
    if (workers) {
      workers->run(job);
    } else {
      job.work();
    }
  }
  if (job.error) std::rethrow_exception(job.error);
}

}  // namespace sinkhorn
