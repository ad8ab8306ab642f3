// Instances of the Hopper kernel: e4m3, sparse weights, every tile.
#include "sm90_launch.cuh"

namespace sparse24 {
const char* sm90_e4m3_sparse_gemm(const Gemm& gemm, const Plan& plan, int multiprocessors) {
  return sm90_launch_tile<Type::e4m3, true>(gemm, plan, multiprocessors);
}
}  // namespace sparse24
