// Instances of the Hopper kernel: s8, dense weights, every tile.
#include "sm90_launch.cuh"

namespace sparse24 {
const char* sm90_s8_dense_gemm(const Gemm& gemm, const Plan& plan, int multiprocessors) {
  return sm90_launch_tile<Type::s8, false>(gemm, plan, multiprocessors);
}
}  // namespace sparse24
