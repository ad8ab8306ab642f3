// The door of the Ampere kernel: what it takes, and on which devices; one file per type holds it.
#include "sm80_device.h"

namespace sparse24 {
namespace {

bool starts_at(const void* base, int64_t pitch, int rows, int bytes) {
  return reinterpret_cast<uintptr_t>(base) % bytes == 0 && (rows <= 1 || pitch % bytes == 0);
}

const char* refuse(const Gemm& gemm) {
  const bool is_s8 = gemm.type == Type::s8;
  const bool has_epilogue = gemm.scale != nullptr || gemm.bias != nullptr || gemm.residual != nullptr ||
                            gemm.activation != Activation::none;
  const int out_size = size_of(gemm.out_type);
  if (gemm.type > Type::e4m3) return "x and the weight must be f16, bf16, s8 or e4m3";
  if (gemm.convolution != nullptr) {
    return "the sm_80 kernel has no convolutions: take the plain product of a 1x1 one";
  }
  if (gemm.out_type == Type::e4m3) return "out cannot be e4m3: take f16, bf16 or f32";
  if (!is_s8 && (gemm.out_type == Type::s8 || gemm.out_type == Type::s32)) {
    return "out can be s8 or s32 only where x and the weight are s8";
  }
  if (gemm.out_type == Type::s32 && has_epilogue) {
    return "s32 is the bare sums: take them without scale, bias, residual and activation";
  }
  if (gemm.tokens < 0 || gemm.in_features < 0 || gemm.out_features < 0) {
    return "tokens and features cannot be negative";
  }
  if (!starts_at(gemm.weight, 0, 1, 16)) return "the packed weight must start at a multiple of 16 bytes";
  if (!starts_at(gemm.x, gemm.x_pitch, gemm.tokens, size_of(gemm.type)) ||
      !starts_at(gemm.out, gemm.out_pitch, gemm.tokens, out_size) ||
      !starts_at(gemm.residual, gemm.residual_pitch, gemm.tokens, out_size)) {
    return "rows of x, out and the residual must start at a multiple of their element's size";
  }
  return nullptr;
}

}  // namespace

const char* sm80_gemm(const Gemm& gemm, int multiprocessors) {
  if (const char* wrong = refuse(gemm)) return wrong;
  int number = 0, major = 0, minor = 0, shared_limit = 0;
  cudaError_t wrong = cudaGetDevice(&number);
  const auto ask = [&](int* answer, cudaDeviceAttr attribute) {
    if (wrong == cudaSuccess) wrong = cudaDeviceGetAttribute(answer, attribute, number);
  };
  ask(&major, cudaDevAttrComputeCapabilityMajor);
  ask(&minor, cudaDevAttrComputeCapabilityMinor);
  ask(&shared_limit, cudaDevAttrMaxSharedMemoryPerBlockOptin);
  if (wrong != cudaSuccess) return cudaGetErrorString(wrong);
  const Sm80Device device = {multiprocessors, shared_limit, 10 * major + minor};
  if (major < 8) return "the sm_80 kernel needs compute capability 8.0 or newer";
  if (gemm.type == Type::e4m3 && device.capability < 89) {
    return "e4m3 needs compute capability 8.9 or newer";
  }
  if (multiprocessors < 1) return "there must be at least one multiprocessor";
  switch (gemm.type) {
    case Type::f16: return sm80_f16_gemm(gemm, device);
    case Type::bf16: return sm80_bf16_gemm(gemm, device);
    case Type::s8: return sm80_s8_gemm(gemm, device);
    default: return sm80_e4m3_gemm(gemm, device);
  }
}

}  // namespace sparse24
