// Instances of the Ampere kernel: s8, sparse and dense weights, every tile.
#include "sm80_launch.cuh"

namespace sparse24 {
const char* sm80_s8_gemm(const Gemm& gemm, const Sm80Device& device) {
  return gemm.sparse ? sm80_launch<Type::s8, true>(gemm, device)
                     : sm80_launch<Type::s8, false>(gemm, device);
}
}  // namespace sparse24
