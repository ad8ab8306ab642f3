// Instances of the Ampere kernel: e4m3, sparse and dense weights, every tile.
#include "sm80_launch.cuh"

namespace sparse24 {
const char* sm80_e4m3_gemm(const Gemm& gemm, const Sm80Device& device) {
  return gemm.sparse ? sm80_launch<Type::e4m3, true>(gemm, device)
                     : sm80_launch<Type::e4m3, false>(gemm, device);
}
}  // namespace sparse24
