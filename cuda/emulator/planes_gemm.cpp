#include "cuda/planes_gemm.h"

#include "autograd/error.h"

// There are no tensor cores here.
namespace sinkhorn::cuda {

bool PlanesGemm::is_here() { return false; }
bool PlanesGemm::pays(const Product&) { return false; }
std::int64_t PlanesGemm::pieces_of(const Product&) { return 1; }
void PlanesGemm::multiply(std::string_view op, const Product&, std::int64_t) {
  fail<DeviceError>(op, ": the emulated grid has no tensor cores; ask PlanesGemm::is_here() before");
}

}  // namespace sinkhorn::cuda
