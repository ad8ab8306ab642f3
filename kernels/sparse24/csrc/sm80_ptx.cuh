// Ampere's instructions, one inline function each, named after the instruction it wraps. (The
// emulator in tests/kernels takes this file's place, hence a guard with a name.)
#ifndef SPARSE24_SM80_PTX
#define SPARSE24_SM80_PTX
#include <cstdint>

#include "gemm.h"

namespace sparse24 {

__device__ __forceinline__ uint32_t to_shared(const void* pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

// 16 bytes, of which the first `bytes` (0 to 16) are read and the rest become zeros.
__device__ __forceinline__ void cp_async(uint32_t to, const void* from, int bytes) {
  asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(bytes)
               : "memory");
}
__device__ __forceinline__ void cp_async_commit_group() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}
// Waits until all but the last `kLeft` groups of this thread are there.
template <int kLeft>
__device__ __forceinline__ void cp_async_wait_group() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kLeft) : "memory");
}

// Four 8 x 16-byte matrices, whose rows' addresses the lanes 0-7, 8-15, 16-23 and 24-31 give.
__device__ __forceinline__ void ldmatrix_x4(uint32_t (&out)[4], uint32_t from) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
               : "r"(from)
               : "memory");
}

#define SPARSE24_MMA(instruction, sum, d, a, b0, b1)                                               \
  asm volatile(instruction " {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"      \
               : "+" sum(d[0]), "+" sum(d[1]), "+" sum(d[2]), "+" sum(d[3])                        \
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1))
#define SPARSE24_MMA_SP(instruction, sum, d, a, b, e, selector)                                    \
  asm volatile(instruction " {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9, %10, %11},"              \
                           " {%0, %1, %2, %3}, %12, %13;"                                          \
               : "+" sum(d[0]), "+" sum(d[1]), "+" sum(d[2]), "+" sum(d[3])                        \
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]), "r"(b[2]),      \
                 "r"(b[3]), "r"(e), "n"(selector))

// d += a . b: 16 features x 32 bytes of K by 8 tokens, m16n8k16 or m16n8k32.
template <Type kType, class Sum>
__device__ __forceinline__ void mma(Sum (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  if constexpr (kType == Type::f16) {
    SPARSE24_MMA("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32", "f", d, a, b0, b1);
  } else if constexpr (kType == Type::bf16) {
    SPARSE24_MMA("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32", "f", d, a, b0, b1);
  } else if constexpr (kType == Type::s8) {
    SPARSE24_MMA("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32", "r", d, a, b0, b1);
  } else {
    SPARSE24_MMA("mma.sync.aligned.m16n8k32.row.col.f32.e4m3.e4m3.f32", "f", d, a, b0, b1);
  }
}

// As above with a 2:4 over 64 dense bytes of K, m16n8k32 or m16n8k64; e is its metadata, of 16-bit
// types that of the lanes with c >> 1 == kSelector.
template <Type kType, int kSelector, class Sum>
__device__ __forceinline__ void mma_sp(Sum (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[4],
                                       uint32_t e) {
#define SPARSE24_SP "mma.sp::ordered_metadata.sync.aligned."
  if constexpr (kType == Type::f16) {
    SPARSE24_MMA_SP(SPARSE24_SP "m16n8k32.row.col.f32.f16.f16.f32", "f", d, a, b, e, kSelector);
  } else if constexpr (kType == Type::bf16) {
    SPARSE24_MMA_SP(SPARSE24_SP "m16n8k32.row.col.f32.bf16.bf16.f32", "f", d, a, b, e, kSelector);
  } else if constexpr (kType == Type::s8) {
    SPARSE24_MMA_SP(SPARSE24_SP "m16n8k64.row.col.s32.s8.s8.s32", "r", d, a, b, e, 0);
  } else {
    SPARSE24_MMA_SP(SPARSE24_SP "m16n8k64.row.col.f32.e4m3.e4m3.f32", "f", d, a, b, e, 0);
  }
#undef SPARSE24_SP
}
#undef SPARSE24_MMA
#undef SPARSE24_MMA_SP

}  // namespace sparse24
#endif
