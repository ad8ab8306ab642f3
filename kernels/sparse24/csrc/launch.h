// Launching kernels. (The emulator in tests/kernels takes this file's place,
// hence a guard with a name.)
#ifndef SPARSE24_LAUNCH
#define SPARSE24_LAUNCH
#include <cuda_runtime.h>
#include <atomic>
#include <cstdint>

namespace sparse24 {

// Raises a kernel's limit of shared memory. `kernel` is a template argument so that each instance
// keeps for itself on which devices (the first 64) it was allowed.
template <auto kernel>
cudaError_t allow_shared(int bytes) {
  static std::atomic<uint64_t> allowed{0};
  int device = 0;
  cudaError_t wrong = cudaGetDevice(&device);
  const uint64_t bit = device < 64 ? uint64_t{1} << device : 0;
  if (wrong == cudaSuccess && (allowed & bit) == 0) {
    wrong = cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                                 cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
    if (wrong == cudaSuccess) allowed |= bit;
  }
  return wrong;
}

// Launches in clusters of `cluster` blocks a kernel that waits for the one before it itself. Returns null, or what the driver said.
template <auto kernel, class... Arguments>
const char* launch_clusters(int blocks, int cluster, int threads, int shared_bytes, cudaStream_t stream,
                            const Arguments&... arguments) {
  if (const cudaError_t wrong = allow_shared<kernel>(shared_bytes); wrong != cudaSuccess) {
    return cudaGetErrorString(wrong);
  }
  cudaLaunchAttribute attributes[2];
  attributes[0].id = cudaLaunchAttributeClusterDimension;
  attributes[0].val.clusterDim = {static_cast<unsigned>(cluster), 1, 1};
  attributes[1].id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attributes[1].val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(blocks);
  config.blockDim = dim3(threads);
  config.dynamicSmemBytes = shared_bytes;
  config.stream = stream;
  config.attrs = attributes;
  config.numAttrs = 2;
  const cudaError_t launched = cudaLaunchKernelEx(&config, kernel, arguments...);
  return launched == cudaSuccess ? nullptr : cudaGetErrorString(launched);
}

// Launches a kernel that takes one struct. Returns null, or what the driver said.
template <auto kernel, class Arguments>
const char* launch(int64_t blocks, int threads, int shared_bytes, cudaStream_t stream,
                   Arguments arguments) {
  if (blocks <= 0) return nullptr;
  if (blocks > INT32_MAX) return "the problem has more than 2^31 - 1 tiles: cut it along its tokens";
  if (shared_bytes > 48 * 1024) {
    if (const cudaError_t wrong = allow_shared<kernel>(shared_bytes); wrong != cudaSuccess) {
      return cudaGetErrorString(wrong);
    }
  }
  void* pointers[] = {&arguments};
  const cudaError_t launched =
      cudaLaunchKernel(reinterpret_cast<const void*>(kernel), dim3(static_cast<unsigned>(blocks)),
                       dim3(threads), pointers, shared_bytes, stream);
  return launched == cudaSuccess ? nullptr : cudaGetErrorString(launched);
}

}  // namespace sparse24
#endif
