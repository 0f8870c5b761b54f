#include "cuda/planes_gemm.h"

// There are no tensor cores here.
namespace sinkhorn::cuda {

bool PlanesGemm::is_here() { return false; }
bool PlanesGemm::pays(const Product&) { return false; }
std::int64_t PlanesGemm::pieces_of(const Product&) { return 1; }
void PlanesGemm::multiply(std::string_view, const Product&, std::int64_t) {}

}  // namespace sinkhorn::cuda
