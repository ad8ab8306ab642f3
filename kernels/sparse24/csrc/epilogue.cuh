// What happens to a finished sum: the arithmetic of gemm.h on one value, shared by every kernel.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "gemm.h"

namespace sparse24 {

__device__ __forceinline__ float gelu_tanh(float value) {
  constexpr float kTwoRootTwoOverPi = 1.5957691216057308f;  // 2 * sqrt(2 / pi)
  // 0.5 * (1 + tanh(u)) = 1 / (1 + exp(-2u)): tanh.approx is too coarse for fp16
  const float twice_u = kTwoRootTwoOverPi * fmaf(0.044715f * value * value, value, value);
  return __fdividef(value, 1.0f + __expf(-twice_u));
}
__device__ __forceinline__ float gelu_erf(float value) {
  constexpr float kRootHalf = 0.7071067811865476f;
  return 0.5f * value * (1.0f + erff(value * kRootHalf));
}

// The larger of it and 0; NaN stays, as torch does.
__device__ __forceinline__ float positive(float value) {
#ifdef __CUDA_ARCH__
  float result;
  asm("max.NaN.f32 %0, %1, 0f00000000;" : "=f"(result) : "f"(value));
  return result;
#else
  return value < 0.0f ? 0.0f : value;
#endif
}
__device__ __forceinline__ float power_of_two(float exponent) {
#ifdef __CUDA_ARCH__
  float result;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(exponent));
  return result;
#else
  return exp2f(exponent);
#endif
}

// gelu_erf for what leaves in 16 or 8 bits, at a third of its instructions, as a tile waits for them:
// max(x, 0) - t * P(t), t = |x|, where P is the normal distribution's tail and log2 P a polynomial,
// fitted (Lawson) to 6.8e-6 on [0, 6.5]; P(6.5) is 4e-11. Off by at most 8.1e-7, and by 7.5e-6 of
// the result, where float32's own 1 + erf(x) is all cancellation from -5.5 down.
__device__ __forceinline__ float gelu_erf_short(float value) {
  const float t = fminf(fabsf(value), 6.5f);
  float exponent = fmaf(-1.75777677e-06f, t, 5.99365849e-05f);
  exponent = fmaf(exponent, t, -0.000916362973f);
  exponent = fmaf(exponent, t, 0.00844738539f);
  exponent = fmaf(exponent, t, -0.053824503f);
  exponent = fmaf(exponent, t, -0.45861572f);
  exponent = fmaf(exponent, t, -1.15118015f);
  exponent = fmaf(exponent, t, -1.00000381f);
  return fmaf(-t, power_of_two(exponent), positive(value));
}

// One branch for all of the values.
template <int kCount>
__device__ __forceinline__ void activate(float (&values)[kCount], Activation activation) {
  switch (activation) {
    case Activation::relu:
#pragma unroll
      for (float& value : values) value = positive(value);
      break;
    case Activation::gelu_tanh:
#pragma unroll
      for (float& value : values) value = gelu_tanh(value);
      break;
    case Activation::gelu_erf:
#pragma unroll
      for (float& value : values) value = gelu_erf(value);
      break;
    default: break;
  }
}

// Rounded half to even and clipped to [-127, 127]; NaN becomes -127.
__device__ __forceinline__ int requantize(float value) {
  return static_cast<int>(rintf(fminf(fmaxf(value, -127.0f), 127.0f)));
}

// One element of a float type, or of s8.
__device__ __forceinline__ float load_as_float(const void* base, Type type, int64_t index) {
  switch (type) {
    case Type::f16: return __half2float(static_cast<const __half*>(base)[index]);
    case Type::bf16: return __bfloat162float(static_cast<const __nv_bfloat16*>(base)[index]);
    case Type::s8: return static_cast<float>(static_cast<const int8_t*>(base)[index]);
    default: return static_cast<const float*>(base)[index];
  }
}

// The fields of Gemm that a kernel needs once its sums are there. Branches on its types are uniform.
struct Epilogue {
  void* out;
  int64_t out_pitch;
  const float* scale;
  const void* bias;
  const void* residual;
  int64_t residual_pitch;
  Type bias_type, out_type;
  Activation activation;
  float residual_scale, out_scale;

  Epilogue() = default;
  explicit Epilogue(const Gemm& gemm)
      : out(gemm.out),
        out_pitch(gemm.out_pitch),
        scale(gemm.scale),
        bias(gemm.bias),
        residual(gemm.residual),
        residual_pitch(gemm.residual_pitch),
        bias_type(gemm.bias_type),
        out_type(gemm.out_type),
        activation(gemm.activation),
        residual_scale(gemm.residual_scale),
        out_scale(gemm.out_scale) {}

  __host__ __device__ int out_size() const { return size_of(out_type); }
  __host__ __device__ bool has_residual() const { return residual != nullptr; }

  __device__ __forceinline__ float scale_of(int feature) const {
    return scale == nullptr ? 1.0f : scale[feature];
  }
  __device__ __forceinline__ float bias_of(int feature) const {
    return bias == nullptr ? 0.0f : load_as_float(bias, bias_type, feature);
  }
  // A bias as its bits were loaded: of a 16-bit type in the low half.
  __device__ __forceinline__ float as_float(uint32_t bits) const {
    if (bias_type == Type::f16) return __half2float(__ushort_as_half(static_cast<uint16_t>(bits)));
    return __uint_as_float(bias_type == Type::bf16 ? bits << 16 : bits);
  }
  __device__ __forceinline__ float residual_of(int token, int feature) const {
    if (residual == nullptr) return 0.0f;
    return load_as_float(static_cast<const char*>(residual) + token * residual_pitch, out_type, feature);
  }
  // Contracted by hand, so that every kernel rounds alike.
  __device__ __forceinline__ float linear(float sum, float scale, float bias, float residual) const {
    return fmaf(residual_scale, residual, fmaf(sum, scale, bias));
  }
  // The activation and out_scale, which every out type has.
  template <int kCount>
  __device__ __forceinline__ void finish(float (&values)[kCount]) const {
    activate(values, activation);
#pragma unroll
    for (float& value : values) value *= out_scale;
  }
  // The same and the packing, with the activation known to be kActivation, where `none` stands for
  // ReLU too. Nothing is spent on what changes nothing: a tile waits for this.
  template <Activation kActivation, int kOutSize, int kCount, int kWords>
  __device__ __forceinline__ void finish(float (&values)[kCount], uint32_t (&words)[kWords]) const {
    constexpr bool kIsGelu = kActivation != Activation::none;
    const bool is_relu = !kIsGelu && activation == Activation::relu;
    const bool is_scaled = out_scale != 1.0f;
    const bool packs_relu = kOutSize == 2 && is_relu && !is_scaled;
    if constexpr (kIsGelu) {
#pragma unroll
      for (float& value : values) {
        value = kActivation == Activation::gelu_tanh ? gelu_tanh(value) : gelu_erf_short(value);
      }
    } else if (is_relu && !packs_relu) {
      activate(values, Activation::relu);
    }
    if (is_scaled) {
#pragma unroll
      for (float& value : values) value *= out_scale;
    }
    if (packs_relu) return pack<kOutSize, true>(values, words);
    pack<kOutSize, false>(values, words);
  }
  __device__ __forceinline__ float apply(float sum, float scale, float bias, float residual) const {
    float value[1] = {linear(sum, scale, bias, residual)};
    finish(value);
    return value[0];
  }

  // Two values of a 16-bit out type in one word, the first one low; and a residual's back.
  template <Type kType, bool kRelu = false>
  static __device__ __forceinline__ uint32_t pack_pair_of(const float* values) {
    uint32_t word;
#ifdef __CUDA_ARCH__  // rounding and ReLU are one instruction
    if constexpr (kRelu && kType == Type::bf16) {
      asm("cvt.rn.relu.bf16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(values[1]), "f"(values[0]));
      return word;
    } else if constexpr (kRelu) {
      asm("cvt.rn.relu.f16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(values[1]), "f"(values[0]));
      return word;
    }
#endif
    float pair[2] = {values[0], values[1]};
    if constexpr (kRelu) activate(pair, Activation::relu);
    if constexpr (kType == Type::bf16) {
      const __nv_bfloat162 both = __floats2bfloat162_rn(pair[0], pair[1]);
      memcpy(&word, &both, 4);
    } else {
      const __half2 both = __floats2half2_rn(pair[0], pair[1]);
      memcpy(&word, &both, 4);
    }
    return word;
  }
  __device__ __forceinline__ uint32_t pack_pair(const float* values) const {
    return out_type == Type::bf16 ? pack_pair_of<Type::bf16>(values) : pack_pair_of<Type::f16>(values);
  }
  __device__ __forceinline__ void unpack_pair(uint32_t word, float* values) const {
    float2 pair;
    if (out_type == Type::bf16) {
      __nv_bfloat162 both;
      memcpy(&both, &word, 4);
      pair = __bfloat1622float2(both);
    } else {
      __half2 both;
      memcpy(&both, &word, 4);
      pair = __half22float2(both);
    }
    values[0] = pair.x;
    values[1] = pair.y;
  }

  // Four values requantized to s8 in one word, the first one lowest; and a residual's back.
  // Behind 1.5 * 2^23 a float has no digits, so that adding it rounds, half to even, and leaves the
  // integer's low byte as its own: no conversion, of which a card does a half or fewer per clock.
  __device__ __forceinline__ uint32_t pack_bytes(const float* values) const {
    uint32_t rounded[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      rounded[i] = __float_as_uint(fminf(fmaxf(values[i], -127.0f), 127.0f) + 12582912.0f);
    }
    return __byte_perm(__byte_perm(rounded[0], rounded[1], 0x0040),
                       __byte_perm(rounded[2], rounded[3], 0x0040), 0x5410);
  }
  __device__ __forceinline__ void unpack_bytes(uint32_t word, float* values) const {
#pragma unroll
    for (int i = 0; i < 4; ++i) values[i] = static_cast<float>(static_cast<int8_t>(word >> 8 * i));
  }

  // Many values, of a 2-byte out type in pairs or of s8 in fours, with one branch for all of them.
  template <int kOutSize, bool kRelu, int kCount, int kWords>
  __device__ __forceinline__ void pack(const float (&values)[kCount], uint32_t (&words)[kWords]) const {
    static_assert(kWords * 4 == kCount * kOutSize, "every value has its place");
    if constexpr (kOutSize == 1) {
#pragma unroll
      for (int i = 0; i < kWords; ++i) words[i] = pack_bytes(&values[4 * i]);
    } else if (out_type == Type::bf16) {
#pragma unroll
      for (int i = 0; i < kWords; ++i) words[i] = pack_pair_of<Type::bf16, kRelu>(&values[2 * i]);
    } else {
#pragma unroll
      for (int i = 0; i < kWords; ++i) words[i] = pack_pair_of<Type::f16, kRelu>(&values[2 * i]);
    }
  }
  template <int kOutSize, int kCount, int kWords>
  __device__ __forceinline__ void add_residual(float (&values)[kCount], const uint32_t (&words)[kWords]) const {
    constexpr int kEach = kCount / kWords;
#pragma unroll
    for (int i = 0; i < kWords; ++i) {
      float residual[kEach];
      if constexpr (kOutSize == 1) {
        unpack_bytes(words[i], residual);
      } else {
        unpack_pair(words[i], residual);
      }
#pragma unroll
      for (int j = 0; j < kEach; ++j) {
        values[kEach * i + j] = fmaf(residual_scale, residual[j], values[kEach * i + j]);
      }
    }
  }

  // One finished sum (float, or int of s8) to its place in out. s32 takes the bare sum.
  template <class Sum>
  __device__ __forceinline__ void store(Sum sum, float scale, float bias, int token, int feature) const {
    char* row = static_cast<char*>(out) + token * out_pitch;
    if (out_type == Type::s32) {
      reinterpret_cast<int*>(row)[feature] = static_cast<int>(sum);
      return;
    }
    const float value = apply(static_cast<float>(sum), scale, bias, residual_of(token, feature));
    switch (out_type) {
      case Type::f16: reinterpret_cast<__half*>(row)[feature] = __float2half_rn(value); break;
      case Type::bf16: reinterpret_cast<__nv_bfloat16*>(row)[feature] = __float2bfloat16_rn(value); break;
      case Type::s8: reinterpret_cast<int8_t*>(row)[feature] = requantize(value); break;
      default: reinterpret_cast<float*>(row)[feature] = value;
    }
  }
};

}  // namespace sparse24
