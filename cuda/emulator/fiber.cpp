#include "cuda/emulator/fiber.h"

#include <sys/mman.h>

#include <cstdint>
#include <cstring>

#include "autograd/error.h"

#if defined(__SANITIZE_ADDRESS__)
#define SINKHORN_ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define SINKHORN_ASAN 1
#endif
#endif
#if defined(__SANITIZE_THREAD__)
#define SINKHORN_TSAN 1
#elif defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define SINKHORN_TSAN 1
#endif
#endif
#ifdef SINKHORN_ASAN
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif
#ifdef SINKHORN_TSAN
#include <sanitizer/tsan_interface.h>
#endif

#if defined(__x86_64__)
// Saves the registers that a call must keep on the stack of the caller, and takes them from the other stack.
// swapcontext would also ask the kernel for the signal mask, twice per switch.
extern "C" void sinkhorn_switch_stack(void** save, void* to);
extern "C" void sinkhorn_start_fiber();  // where a new stack begins: calls r12 with rbx
asm(R"(
.pushsection .text
.globl sinkhorn_switch_stack
.type sinkhorn_switch_stack, @function
sinkhorn_switch_stack:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size sinkhorn_switch_stack, .-sinkhorn_switch_stack
.globl sinkhorn_start_fiber
.type sinkhorn_start_fiber, @function
sinkhorn_start_fiber:
  movq %rbx, %rdi
  call *%r12
  ud2
.size sinkhorn_start_fiber, .-sinkhorn_start_fiber
.popsection
)");
#endif

namespace sinkhorn::emulator {
namespace {
constexpr std::size_t kStackBytes = 256 << 10;  // of address space; only pages in use cost memory
}  // namespace

Fiber::Fiber() {
  void* memory = mmap(nullptr, kStackBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) fail<OutOfMemory>("emulator: no memory for the stack of a thread");
  stack_ = static_cast<std::byte*>(memory);
#if defined(__x86_64__)
  // What sinkhorn_switch_stack takes from a stack: six registers and the address to return to.
  void** top = reinterpret_cast<void**>(stack_ + kStackBytes) - 9;
  std::memset(top, 0, 9 * sizeof(void*));
  top[3] = reinterpret_cast<void*>(&main);  // r12
  top[4] = this;                            // rbx
  top[6] = reinterpret_cast<void*>(&sinkhorn_start_fiber);
  here_ = top;
#else
  getcontext(&here_);
  here_.uc_stack.ss_sp = stack_;
  here_.uc_stack.ss_size = kStackBytes;
  here_.uc_link = nullptr;
  const auto start =
      +[](unsigned high, unsigned low) { main(reinterpret_cast<Fiber*>(std::uintptr_t(high) << 32 | low)); };
  const auto self = reinterpret_cast<std::uintptr_t>(this);
  makecontext(&here_, reinterpret_cast<void (*)()>(start), 2, unsigned(self >> 32), unsigned(self));
#endif
#ifdef SINKHORN_TSAN
  tsan_fiber_ = __tsan_create_fiber(0);
#endif
}

Fiber::~Fiber() {
#ifdef SINKHORN_ASAN
  __asan_unpoison_memory_region(stack_, kStackBytes);  // of a body that never returned
#endif
#ifdef SINKHORN_TSAN
  __tsan_destroy_fiber(tsan_fiber_);
#endif
  munmap(stack_, kStackBytes);
}

void Fiber::begin(Body body, void* argument) {
  body_ = body;
  argument_ = argument;
  done_ = false;
}

bool Fiber::resume() {
#ifdef SINKHORN_ASAN
  __sanitizer_start_switch_fiber(&caller_fake_stack_, stack_, kStackBytes);
#endif
#ifdef SINKHORN_TSAN
  tsan_caller_ = __tsan_get_current_fiber();
  __tsan_switch_to_fiber(tsan_fiber_, 0);
#endif
#if defined(__x86_64__)
  sinkhorn_switch_stack(&caller_, here_);
#else
  swapcontext(&caller_, &here_);
#endif
#ifdef SINKHORN_ASAN
  __sanitizer_finish_switch_fiber(caller_fake_stack_, nullptr, nullptr);
#endif
  return done_;
}

// On the fiber's stack, after a switch to it.
void Fiber::enter() {
#ifdef SINKHORN_ASAN
  __sanitizer_finish_switch_fiber(fake_stack_, &caller_stack_, &caller_stack_size_);
#endif
}

void Fiber::suspend() {
  leave();
  enter();
}

void Fiber::leave() {
#ifdef SINKHORN_ASAN
  __sanitizer_start_switch_fiber(&fake_stack_, caller_stack_, caller_stack_size_);
#endif
#ifdef SINKHORN_TSAN
  __tsan_switch_to_fiber(tsan_caller_, 0);
#endif
#if defined(__x86_64__)
  sinkhorn_switch_stack(&here_, caller_);
#else
  swapcontext(&here_, &caller_);
#endif
}

void Fiber::main(Fiber* self) {
  self->enter();
  for (;;) {
    self->body_(self->argument_);
    self->done_ = true;
    self->suspend();
  }
}

}  // namespace sinkhorn::emulator
