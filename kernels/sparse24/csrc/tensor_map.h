// Tensor maps of the copy engine; the driver's encoder is looked up, so nothing links to libcuda.
#pragma once
#include <cuda.h>
#include <cuda_runtime_api.h>
#include <cstdint>

namespace sparse24 {

// Rows of `columns` elements, `pitch` bytes apart, copied in boxes of box_rows x box_columns whose
// 16-byte chunks are swizzled by the box's row bytes (64 or 128). Returns null or what was wrong.
inline const char* encode_rows(CUtensorMap* map, CUtensorMapDataType type, int size, const void* base,
                               int rows, int columns, int64_t pitch, int box_rows, int box_columns) {
  using Encode = decltype(&cuTensorMapEncodeTiled);
  static const Encode encode = [] {
    void* found = nullptr;
    cudaDriverEntryPointQueryResult result;
    cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &found, 12000, cudaEnableDefault,
                                     &result);
    return reinterpret_cast<Encode>(found);
  }();
  if (encode == nullptr) return "the driver has no cuTensorMapEncodeTiled (CUDA 12 or later needed)";
  const cuuint64_t sizes[2] = {static_cast<cuuint64_t>(columns), static_cast<cuuint64_t>(rows)};
  const cuuint64_t strides[1] = {static_cast<cuuint64_t>(pitch)};
  const cuuint32_t box[2] = {static_cast<cuuint32_t>(box_columns), static_cast<cuuint32_t>(box_rows)};
  const cuuint32_t steps[2] = {1, 1};
  const auto swizzle = box_columns * size == 128 ? CU_TENSOR_MAP_SWIZZLE_128B : CU_TENSOR_MAP_SWIZZLE_64B;
  const CUresult result =
      encode(map, type, 2, const_cast<void*>(base), sizes, strides, box, steps,
             CU_TENSOR_MAP_INTERLEAVE_NONE, swizzle, CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
             CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  return result == CUDA_SUCCESS ? nullptr
                                : "the copy engine refuses this tensor (its base and row pitch must be "
                                  "multiples of 16 bytes)";
}

}  // namespace sparse24
