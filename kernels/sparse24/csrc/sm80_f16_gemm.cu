// Instances of the Ampere kernel: f16, sparse and dense weights, every tile.
#include "sm80_launch.cuh"

namespace sparse24 {
const char* sm80_f16_gemm(const Gemm& gemm, const Sm80Device& device) {
  return gemm.sparse ? sm80_launch<Type::f16, true>(gemm, device)
                     : sm80_launch<Type::f16, false>(gemm, device);
}
}  // namespace sparse24
