// A fiber: a function with a stack of its own that can stop anywhere inside and go on later.
#pragma once
#include <cstddef>
#include <memory>

#if !defined(__x86_64__)
#include <ucontext.h>
#endif

namespace sinkhorn::emulator {

/// Belongs to the thread that made it. Known to AddressSanitizer and ThreadSanitizer.
class Fiber {
 public:
  Fiber();
  ~Fiber();
  Fiber(const Fiber&) = delete;

  using Body = void (*)(void* argument);
  /// What the next resume() begins with. The fiber must be new, or its last body must have returned. The body must not
  /// let an exception out.
  void begin(Body body, void* argument);
  /// Runs the body, until it calls suspend() or returns. True if it returned.
  bool resume();
  /// Inside the body: goes back to the caller of resume().
  void suspend();

 private:
  static void main(Fiber* self);
  void enter();
  void leave();

#if defined(__x86_64__)
  void *here_ = nullptr, *caller_ = nullptr;  // stack pointers
#else
  ucontext_t here_, caller_;
#endif
  std::byte* stack_ = nullptr;
  Body body_ = nullptr;
  void* argument_ = nullptr;
  bool done_ = true;
  // What the sanitizers need to follow from stack to stack.
  [[maybe_unused]] void *fake_stack_ = nullptr, *caller_fake_stack_ = nullptr;
  [[maybe_unused]] const void* caller_stack_ = nullptr;
  [[maybe_unused]] std::size_t caller_stack_size_ = 0;
  [[maybe_unused]] void *tsan_fiber_ = nullptr, *tsan_caller_ = nullptr;
};

}  // namespace sinkhorn::emulator
