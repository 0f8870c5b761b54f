// The emulated GPU's memory: blocks that kernels may touch and host code may not.
#pragma once
#include <cstddef>

namespace sinkhorn::emulator {

/// A block of device memory, or null if none is left. Its address is one that nobody can read; kernels reach it through
/// Global, the host by copies.
void* allocate(std::size_t bytes);
void release(void* block);
/// How many bytes of a block kernels may touch; 0: none.
void claim(void* block, std::size_t bytes);

}  // namespace sinkhorn::emulator
