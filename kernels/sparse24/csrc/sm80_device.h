// What the Ampere kernel is told of the device, and its instances, one file per type.
#pragma once
#include "gemm.h"

namespace sparse24 {

struct Sm80Device {
  int multiprocessors, shared_limit, capability;  // bytes of a thread block; 10 * major + minor
};

const char* sm80_f16_gemm(const Gemm& gemm, const Sm80Device& device);
const char* sm80_bf16_gemm(const Gemm& gemm, const Sm80Device& device);
const char* sm80_s8_gemm(const Gemm& gemm, const Sm80Device& device);
const char* sm80_e4m3_gemm(const Gemm& gemm, const Sm80Device& device);

}  // namespace sparse24
