// Packing on the GPU: a dense [rows, columns] weight into layout.h's blocks, and back.
#pragma once
#include <cuda_runtime_api.h>
#include <cstdint>

#include "gemm.h"

namespace sparse24 {

// `bad` is one int64 on the device, preset to -1: receives the lowest index row * groups + group of
// a group that is not 2:4 or holds NaN or an infinite value. Columns contiguous, rows `pitch` bytes
// apart. Dense blocks hold any values; of them only NaN and infinite ones are bad.
const char* pack(const void* weight, int64_t pitch, int rows, int columns, Type type, bool sparse,
                 void* packed, int64_t* bad, cudaStream_t stream);
const char* unpack(const void* packed, int rows, int columns, Type type, bool sparse, void* weight,
                   int64_t pitch, cudaStream_t stream);

}  // namespace sparse24
