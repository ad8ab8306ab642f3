// The seam between torch (ops.cpp) and the kernels: plain pointers, sizes, a stream.
#pragma once
#include <cuda_runtime_api.h>
#include <cstdint>

#include "layout.h"

namespace sparse24 {

enum class Type : int { f16 = 0, bf16 = 1, s8 = 2, e4m3 = 3, f32 = 4, s32 = 5 };
enum class Activation : int { none = 0, relu = 1, gelu_tanh = 2, gelu_erf = 3 };

SPARSE24_BOTH constexpr int size_of(Type type) {
  return type == Type::f16 || type == Type::bf16 ? 2 : type == Type::f32 || type == Type::s32 ? 4 : 1;
}

// out = activation(scale * (x @ weight^T) + bias + residual_scale * residual), then times out_scale,
// rounded half to even and clipped to [-127, 127] where out is s8. Sums are fp32, of s8 int32.
struct Gemm {
  int tokens, in_features, out_features;
  Type type;      // of x and weight: f16, bf16, s8, e4m3
  Type out_type;  // f16, bf16, f32; of s8 also s8 and s32 (s32: the bare sums, no epilogue)
  bool sparse;    // weight is in sparse blocks of layout.h, else in dense blocks
  const void* x;  // [tokens, in_features], rows `x_pitch` bytes apart, columns contiguous
  int64_t x_pitch;
  const void* weight;  // packed, layout.h
  void* out;           // [tokens, out_features], rows `out_pitch` bytes apart, columns contiguous
  int64_t out_pitch;
  const float* scale;  // [out_features] or null (1)
  const void* bias;    // [out_features] of bias_type (f16, bf16, f32), or null
  Type bias_type;
  const void* residual;  // [tokens, out_features] of out_type, or null
  int64_t residual_pitch;
  float residual_scale;
  float out_scale;
  Activation activation;
  cudaStream_t stream;
};

// A tile and how it is laid over the problem; config.h lists the tiles there are.
struct Plan {
  int tile;       // index into kTiles of config.h
  int cluster_m;  // blocks of a cluster along out_features, which share x
  int cluster_n;  // along tokens, which share the weight
  int raster;     // clusters along out_features before the next token tile; 0: all

  // As one number, in which seam.py gives it.
  int64_t number() const { return tile | cluster_m << 8 | cluster_n << 16 | static_cast<int64_t>(raster) << 24; }
  static Plan of(int64_t number) {
    return {static_cast<int>(number & 255), static_cast<int>(number >> 8 & 255),
            static_cast<int>(number >> 16 & 255), static_cast<int>(number >> 24)};
  }
};

// Each returns null, or what was wrong in words (static storage).
using Sm90Gemm = const char*(const Gemm& gemm, const Plan& plan, int multiprocessors);
Sm90Gemm sm90_f16_sparse_gemm, sm90_bf16_sparse_gemm, sm90_s8_sparse_gemm, sm90_e4m3_sparse_gemm;
Sm90Gemm sm90_f16_dense_gemm, sm90_bf16_dense_gemm, sm90_s8_dense_gemm, sm90_e4m3_dense_gemm;
const char* sm80_gemm(const Gemm& gemm, int multiprocessors);

}  // namespace sparse24
