// Launches a kernel that takes one struct. (The emulator in tests/kernels takes this file's place,
// hence a guard with a name.)
#ifndef SPARSE24_LAUNCH
#define SPARSE24_LAUNCH
#include <cuda_runtime_api.h>
#include <atomic>
#include <cstdint>

namespace sparse24 {

// Returns null, or what the driver said. `kernel` is a template argument so that each instance keeps
// for itself on which devices (the first 64) it was allowed its shared memory.
template <auto kernel, class Arguments>
const char* launch(int64_t blocks, int threads, int shared_bytes, cudaStream_t stream,
                   Arguments arguments) {
  static std::atomic<uint64_t> allowed{0};
  if (blocks <= 0) return nullptr;
  if (blocks > INT32_MAX) return "the problem has more than 2^31 - 1 tiles: cut it along its tokens";
  const void* function = reinterpret_cast<const void*>(kernel);
  if (shared_bytes > 48 * 1024) {
    int device = 0;
    cudaError_t wrong = cudaGetDevice(&device);
    const uint64_t bit = device < 64 ? uint64_t{1} << device : 0;
    if (wrong == cudaSuccess && (allowed & bit) == 0) {
      wrong = cudaFuncSetAttribute(function, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes);
      if (wrong == cudaSuccess) allowed |= bit;
    }
    if (wrong != cudaSuccess) return cudaGetErrorString(wrong);
  }
  void* pointers[] = {&arguments};
  const cudaError_t launched = cudaLaunchKernel(function, dim3(static_cast<unsigned>(blocks)),
                                                dim3(threads), pointers, shared_bytes, stream);
  return launched == cudaSuccess ? nullptr : cudaGetErrorString(launched);
}

}  // namespace sparse24
#endif
