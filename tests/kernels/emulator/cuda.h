// Enough of CUDA on a CPU to run the kernels as they are: included before them.
//
// Copies can happen at once or as late as the wait for them allows, and warps can be run first to last
// or last to first, so that a missing wait or barrier shows as a wrong result. Shared memory starts
// out as NaN.
#pragma once
#include <cuda_runtime_api.h>

#include <cmath>

#include "threads.h"

// What nvcc declares by itself -------------------------------------------------------------------
#define __launch_bounds__(...)
inline uint3 threadIdx, blockIdx;
inline dim3 gridDim;
using std::min;

inline void __syncthreads() {
  emulator::meet(0, static_cast<int>(emulator::cluster[emulator::rank].threads.size()));
}
inline void __syncwarp() {
  int nothing;
  emulator::collective("__syncwarp", nothing, [](int**) {});
}
[[noreturn]] inline void __trap() { emulator::fail("__trap"); }
inline int __ffs(unsigned value) { return __builtin_ffs(value); }
inline uint32_t __byte_perm(uint32_t low, uint32_t high, uint32_t selector) {
  const uint64_t bytes = uint64_t{high} << 32 | low;
  uint32_t result = 0;
  for (int i = 0; i < 4; ++i) {
    result |= static_cast<uint32_t>(bytes >> 8 * (selector >> 4 * i & 7) & 255) << 8 * i;
  }
  return result;
}
inline float __expf(float value) { return std::exp(value); }
inline float __fdividef(float a, float b) { return a / b; }
inline uint32_t __cvta_generic_to_shared(const void* pointer) {
  return static_cast<uint32_t>(static_cast<const uint8_t*>(pointer) - emulator::shared);
}
inline int __any_sync(unsigned, int predicate) {
  emulator::collective("any", predicate, [](int** all) {
    int any = 0;
    for (int i = 0; i < 32; ++i) any |= *all[i] != 0;
    for (int i = 0; i < 32; ++i) *all[i] = any;
  });
  return predicate;
}
inline uint32_t __shfl_sync(unsigned, uint32_t value, int from) {
  struct Slot {
    uint32_t value;
    int from;
  } mine = {value, from};
  emulator::collective("shfl.idx", mine, [](Slot** all) {
    uint32_t old[32];
    for (int i = 0; i < 32; ++i) old[i] = all[i]->value;
    for (int i = 0; i < 32; ++i) all[i]->value = old[all[i]->from & 31];
  });
  return mine.value;
}
inline uint32_t __float_as_uint(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  return bits;
}
inline float __uint_as_float(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}
inline unsigned long long __shfl_xor_sync(unsigned, unsigned long long value, int mask) {
  emulator::collective("shfl", value, [mask](unsigned long long** all) {
    unsigned long long old[32];
    for (int i = 0; i < 32; ++i) old[i] = *all[i];
    for (int i = 0; i < 32; ++i) *all[i] = old[i ^ mask];
  });
  return value;
}
inline void atomicMin(unsigned long long* to, unsigned long long value) {
  if (value < *to) *to = value;
}

// In place of launch.h ----------------------------------------------------------------------------
#define SPARSE24_LAUNCH
namespace sparse24 {

template <auto kernel, class... Arguments>
const char* launch_clusters(int64_t blocks, int cluster, int thread_count, int shared_bytes, cudaStream_t,
                            const Arguments&... arguments) {
  if (shared_bytes > emulator::settings.shared_limit) return "too much shared memory";
  if (blocks % cluster != 0) return "a cluster of part of its blocks";
  const emulator::Work body = [&] { kernel(arguments...); };
  emulator::threads_of_last_launch = thread_count;
  gridDim = dim3(static_cast<unsigned>(blocks));
  if (_setjmp(emulator::launching) != 0) return emulator::failure;
  for (int64_t first = 0; first < blocks; first += cluster) {
    emulator::run_cluster(static_cast<int>(first), cluster, thread_count, body);
  }
  return nullptr;
}
template <auto kernel, class Arguments>
const char* launch(int64_t blocks, int thread_count, int shared_bytes, cudaStream_t stream,
                   Arguments arguments) {
  return launch_clusters<kernel>(blocks, 1, thread_count, shared_bytes, stream, arguments);
}

}  // namespace sparse24
