// Enough of CUDA on a CPU to run pack.cu and the sm_80 kernel as they are: force-included by g++.
//
// A thread is a coroutine that runs until it waits for its warp or its block. Copies of cp.async can
// happen at once or as late as their wait allows, and warps can be run first to last or last to first,
// so that a missing wait or barrier shows as a wrong result. Shared memory starts out as NaN.
#pragma once
#include <cuda_runtime_api.h>
#include <vector_functions.h>

#include <cmath>
#include <csetjmp>
#include <cstdint>
#include <cstring>
#include <functional>
#include <vector>

namespace sparse24 {
extern uint8_t shared[232448];  // what the kernels declare extern __shared__
}

namespace emulator {

using sparse24::shared;

inline std::jmp_buf launching;
inline const char* failure;

// Leaves the kernel: its launch returns `what`.
[[noreturn]] inline void fail(const char* what) {
  failure = what;
  _longjmp(launching, 1);
}

struct Copy {
  void* to;
  const void* from;
  int bytes;
};

struct Thread {
  std::jmp_buf state;
  uint3 index;
  bool is_started, is_done, waits_for_block;
  std::vector<std::vector<Copy>> groups;  // committed, then the open one
  std::vector<uint8_t> stack;
};

struct Warp {
  int arrived;
  uint64_t generation;
  const char* operation;
  void* slots[32];
};

struct Settings {
  int copies_are_late = 0, last_warp_first = 0;
  int capability = 89, shared_limit = 163 * 1024;
  const uint8_t* readable[2][2] = {};  // [range][begin, end] that cp.async may read
};

inline Settings settings;
inline std::vector<Thread> threads;
inline std::vector<Warp> warps;
inline std::jmp_buf scheduler;
inline int current, arrived_at_block, bank_conflicts, threads_of_last_launch;
inline std::function<void()> body;

inline void yield() {
  if (_setjmp(threads[current].state) == 0) _longjmp(scheduler, 1);
}

// The last of a warp's 32 lanes to arrive computes for all, from what each brought.
template <class Slot, class Compute>
void collective(const char* operation, Slot& mine, Compute compute) {
  Warp& warp = warps[current / 32];
  if (warp.arrived > 0 && std::strcmp(warp.operation, operation) != 0) fail("a warp diverged");
  warp.operation = operation;
  warp.slots[current % 32] = &mine;
  if (++warp.arrived < 32) {
    const uint64_t generation = warp.generation;
    while (warp.generation == generation) yield();
    return;
  }
  compute(reinterpret_cast<Slot**>(warp.slots));
  warp.arrived = 0;
  ++warp.generation;
}

void run_block(int block, int thread_count);  // emulated.cpp

}  // namespace emulator

// What nvcc declares by itself -------------------------------------------------------------------
#define __launch_bounds__(...)
inline uint3 threadIdx, blockIdx;

inline void __syncthreads() {
  using namespace emulator;
  threads[current].waits_for_block = true;
  if (++arrived_at_block == static_cast<int>(threads.size())) {
    arrived_at_block = 0;
    for (Thread& thread : threads) thread.waits_for_block = false;
  }
  while (threads[current].waits_for_block) yield();
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
template <auto kernel, class Arguments>
const char* launch(int64_t blocks, int thread_count, int shared_bytes, cudaStream_t, Arguments arguments) {
  if (shared_bytes > emulator::settings.shared_limit) return "too much shared memory";
  emulator::body = [=] { kernel(arguments); };
  emulator::threads_of_last_launch = thread_count;
  if (_setjmp(emulator::launching) != 0) return emulator::failure;
  for (int block = 0; block < blocks; ++block) {
    std::memset(emulator::shared, 0xff, sizeof(emulator::shared));
    emulator::run_block(block, thread_count);
  }
  return nullptr;
}
}  // namespace sparse24
