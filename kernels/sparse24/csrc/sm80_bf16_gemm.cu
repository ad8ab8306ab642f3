// Instances of the Ampere kernel: bf16, sparse and dense weights, every tile.
#include "sm80_launch.cuh"

namespace sparse24 {
const char* sm80_bf16_gemm(const Gemm& gemm, const Sm80Device& device) {
  return gemm.sparse ? sm80_launch<Type::bf16, true>(gemm, device)
                     : sm80_launch<Type::bf16, false>(gemm, device);
}
}  // namespace sparse24
