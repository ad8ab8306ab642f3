// Instances of the Hopper kernel: bf16, dense weights, every tile.
#include "sm90_launch.cuh"

namespace sparse24 {
const char* sm90_bf16_dense_gemm(const Gemm& gemm, const Plan& plan, int multiprocessors) {
  return sm90_launch_tile<Type::bf16, false>(gemm, plan, multiprocessors);
}
}  // namespace sparse24
