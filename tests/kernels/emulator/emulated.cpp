// The kernels' own sources on the emulator, and the door for ctypes.
#include "sm80_ptx.h"

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
