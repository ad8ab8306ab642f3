// The kernels' own sources on the emulator, and the door for ctypes.
#include <ucontext.h>

#include "sm80_ptx.h"

namespace emulator {

namespace {
ucontext_t starting, stopped;

void thread_main() {
  body();
  threads[current].is_done = true;
  yield();
}
}  // namespace

void start_on_own_stack(Thread& thread) {
  thread.is_started = true;
  getcontext(&starting);
  starting.uc_stack.ss_sp = thread.stack.data();
  starting.uc_stack.ss_size = thread.stack.size();
  starting.uc_link = nullptr;
  makecontext(&starting, thread_main, 0);
  swapcontext(&stopped, &starting);
}

// Runs a thread until it waits.
static void resume(int index) {
  current = index;
  threadIdx = threads[index].index;
  if (_setjmp(scheduler) != 0) return;
  if (threads[index].is_started) _longjmp(threads[index].state, 1);
  start_on_own_stack(threads[index]);
}

// Runs a warp until all its lanes wait for the block or are done; says whether any of them ran.
static bool run_warp(int warp) {
  bool ran = false;
  for (bool is_busy = true; is_busy;) {
    is_busy = false;
    for (int i = 32 * warp; i < 32 * warp + 32; ++i) {
      if (threads[i].is_done || threads[i].waits_for_block) continue;
      resume(i);
      is_busy = ran = true;
    }
  }
  return ran;
}

void run_block(int block, int thread_count) {
  if (thread_count % 32 != 0) fail("a block of part of a warp");
  threads.resize(thread_count);
  warps.assign(thread_count / 32, Warp{});
  arrived_at_block = 0;
  blockIdx = {static_cast<unsigned>(block), 0, 0};
  for (int i = 0; i < thread_count; ++i) {
    Thread& thread = threads[i];
    thread.index = {static_cast<unsigned>(i), 0, 0};
    thread.is_started = thread.is_done = thread.waits_for_block = false;
    thread.groups.clear();
    thread.stack.resize(64 * 1024);
  }
  for (bool is_busy = true; is_busy;) {
    is_busy = false;
    for (size_t i = 0; i < warps.size(); ++i) {
      is_busy |= run_warp(settings.last_warp_first ? warps.size() - 1 - i : i);
    }
  }
  for (const Thread& thread : threads) {
    if (!thread.is_done) fail("a thread waits for ever");
  }
}

}  // namespace emulator

extern "C" cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}
extern "C" cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  const emulator::Settings& settings = emulator::settings;
  *value = attribute == cudaDevAttrComputeCapabilityMajor   ? settings.capability / 10
           : attribute == cudaDevAttrComputeCapabilityMinor ? settings.capability % 10
                                                            : settings.shared_limit;
  return cudaSuccess;
}
extern "C" const char* cudaGetErrorString(cudaError_t) { return "an error of the emulator"; }

#include "pack.cu"
#include "sm80_bf16_gemm.cu"
#include "sm80_e4m3_gemm.cu"
#include "sm80_f16_gemm.cu"
#include "sm80_gemm.cu"
#include "sm80_s8_gemm.cu"

namespace sparse24 {
alignas(1024) uint8_t shared[sizeof(shared)];
}

extern "C" {

// `readable`: where x and the weight begin and end, begin, end, begin, end.
void emulator_set(int copies_are_late, int last_warp_first, int capability, int shared_limit,
                  const uint8_t* const* readable) {
  emulator::settings = {copies_are_late, last_warp_first, capability, shared_limit,
                        {{readable[0], readable[1]}, {readable[2], readable[3]}}};
  emulator::bank_conflicts = 0;
  emulator::threads_of_last_launch = 0;
}
int emulator_bank_conflicts() { return emulator::bank_conflicts; }
int emulator_threads() { return emulator::threads_of_last_launch; }

const char* emulated_gemm(const sparse24::Gemm* gemm, int multiprocessors) {
  return sparse24::sm80_gemm(*gemm, multiprocessors);
}
const char* emulated_pack(const void* weight, int64_t pitch, int rows, int columns, int type, int sparse,
                          void* packed, int64_t* bad) {
  return sparse24::pack(weight, pitch, rows, columns, static_cast<sparse24::Type>(type), sparse, packed,
                        bad, nullptr);
}
const char* emulated_unpack(const void* packed, int rows, int columns, int type, int sparse,
                            void* weight, int64_t pitch) {
  return sparse24::unpack(packed, rows, columns, static_cast<sparse24::Type>(type), sparse, weight, pitch,
                          nullptr);
}

}  // extern "C"
