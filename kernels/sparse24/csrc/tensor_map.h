// Tensor maps of the copy engine; the driver's encoder is looked up, so nothing links to libcuda.
#pragma once
#include <cuda.h>
#include <cuda_runtime_api.h>
#include <cstdint>

#include "gemm.h"

namespace sparse24 {

// An entry point of the driver by name, or null.
template <class Function>
Function driver_entry(const char* name) {
  void* found = nullptr;
  cudaDriverEntryPointQueryResult result;
  cudaGetDriverEntryPointByVersion(name, &found, 12000, cudaEnableDefault, &result);
  return reinterpret_cast<Function>(found);
}
constexpr const char* kNoEncoder = "the driver has no tensor map encoder (CUDA 12 or later is needed)";

// Rows of `columns` elements, `pitch` bytes apart, copied in boxes of box_rows x box_columns whose
// 16-byte chunks are swizzled by the box's row bytes (64 or 128). Returns null or what was wrong.
inline const char* encode_rows(CUtensorMap* map, CUtensorMapDataType type, int size, const void* base,
                               int rows, int columns, int64_t pitch, int box_rows, int box_columns) {
  static const auto encode = driver_entry<decltype(&cuTensorMapEncodeTiled)>("cuTensorMapEncodeTiled");
  if (encode == nullptr) return kNoEncoder;
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

// Boxes of `box_pixels` output pixels by `box_channels` channels of a convolution's x, at one place
// of its kernel; padding reads as zero.
inline const char* encode_pixels(CUtensorMap* map, CUtensorMapDataType type, int size, const void* base,
                                 const Convolution& c, int64_t pitch, int box_pixels, int box_channels) {
  static const auto encode = driver_entry<decltype(&cuTensorMapEncodeIm2col)>("cuTensorMapEncodeIm2col");
  if (encode == nullptr) return kNoEncoder;
  const cuuint64_t row = static_cast<cuuint64_t>(pitch) * c.width;
  const cuuint64_t sizes[4] = {static_cast<cuuint64_t>(c.channels), static_cast<cuuint64_t>(c.width),
                               static_cast<cuuint64_t>(c.height), static_cast<cuuint64_t>(c.batch)};
  const cuuint64_t strides[3] = {static_cast<cuuint64_t>(pitch), row, row * c.height};
  // corners of the box that the kernel's first element walks
  const int lower[2] = {-c.padding_width, -c.padding_height};
  const int upper[2] = {c.padding_width - (c.kernel_width - 1) * c.dilation_width,
                        c.padding_height - (c.kernel_height - 1) * c.dilation_height};
  const cuuint32_t steps[4] = {1, static_cast<cuuint32_t>(c.stride_width),
                               static_cast<cuuint32_t>(c.stride_height), 1};
  const CUresult result =
      encode(map, type, 4, const_cast<void*>(base), sizes, strides, lower, upper, box_channels,
             box_pixels, steps, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
             CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  return result == CUDA_SUCCESS ? nullptr
                                : "the copy engine refuses this convolution (a pixel must be a multiple "
                                  "of 16 bytes, strides at most 8, padding and kernel below 128)";
}

// Boxes of `box_rows` x `box_columns` pixels by `box_channels` channels of images whose pixels lie
// `pitch` bytes apart; what is outside an image reads as zero and is not stored.
inline const char* encode_images(CUtensorMap* map, CUtensorMapDataType type, int size, const void* base,
                                 int channels, int width, int height, int images, int64_t pitch,
                                 int box_rows, int box_columns, int box_channels) {
  static const auto encode = driver_entry<decltype(&cuTensorMapEncodeTiled)>("cuTensorMapEncodeTiled");
  if (encode == nullptr) return kNoEncoder;
  const cuuint64_t row = static_cast<cuuint64_t>(pitch) * width;
  const cuuint64_t sizes[4] = {static_cast<cuuint64_t>(channels), static_cast<cuuint64_t>(width),
                               static_cast<cuuint64_t>(height), static_cast<cuuint64_t>(images)};
  const cuuint64_t strides[3] = {static_cast<cuuint64_t>(pitch), row, row * height};
  const cuuint32_t box[4] = {static_cast<cuuint32_t>(box_channels), static_cast<cuuint32_t>(box_columns),
                             static_cast<cuuint32_t>(box_rows), 1};
  const cuuint32_t steps[4] = {1, 1, 1, 1};
  const auto swizzle = box_channels * size == 128 ? CU_TENSOR_MAP_SWIZZLE_128B : CU_TENSOR_MAP_SWIZZLE_64B;
  const CUresult result =
      encode(map, type, 4, const_cast<void*>(base), sizes, strides, box, steps,
             CU_TENSOR_MAP_INTERLEAVE_NONE, swizzle, CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
             CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  return result == CUDA_SUCCESS ? nullptr : "the copy engine refuses these images";
}

}  // namespace sparse24
