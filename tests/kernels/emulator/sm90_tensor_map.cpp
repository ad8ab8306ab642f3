// The driver's encoders of tensor maps: what they refuse, and the copy engine's own form of the rest.
#include "sm90_copies.h"

namespace emulator {

namespace {

int size_of_type(CUtensorMapDataType type) {
  switch (type) {
    case CU_TENSOR_MAP_DATA_TYPE_UINT8: return 1;
    case CU_TENSOR_MAP_DATA_TYPE_FLOAT16:
    case CU_TENSOR_MAP_DATA_TYPE_BFLOAT16: return 2;
    case CU_TENSOR_MAP_DATA_TYPE_FLOAT32:
    case CU_TENSOR_MAP_DATA_TYPE_INT32: return 4;
    default: return 0;
  }
}

// What both modes share; false is CUDA_ERROR_INVALID_VALUE.
bool encode(TensorMap& map, CUtensorMapDataType type, cuuint32_t rank, void* base, const cuuint64_t* sizes,
            const cuuint64_t* strides, cuuint32_t box_elements, const cuuint32_t* steps,
            CUtensorMapSwizzle swizzle) {
  map.base = static_cast<uint8_t*>(base);
  map.rank = static_cast<int>(rank);
  map.size = size_of_type(type);
  if (map.size == 0 || rank > 4 || reinterpret_cast<uintptr_t>(base) % 16 != 0) return false;
  for (int i = 0; i < map.rank; ++i) {
    if (sizes[i] == 0 || sizes[i] > INT32_MAX || steps[i] < 1 || steps[i] > 8) return false;
    map.sizes[i] = static_cast<int>(sizes[i]);
    if (i == 0) continue;
    if (strides[i - 1] % 16 != 0 || strides[i - 1] >= cuuint64_t{1} << 40) return false;
    map.strides[i] = static_cast<int64_t>(strides[i - 1]);
  }
  map.swizzle_bytes = swizzle == CU_TENSOR_MAP_SWIZZLE_128B  ? 128
                      : swizzle == CU_TENSOR_MAP_SWIZZLE_64B ? 64
                      : swizzle == CU_TENSOR_MAP_SWIZZLE_32B ? 32
                                                             : 0;
  map.row_bytes = static_cast<int>(box_elements) * map.size;
  return box_elements >= 1 && box_elements <= 256 && map.row_bytes % 16 == 0 && map.swizzle_bytes > 0 &&
         map.row_bytes == map.swizzle_bytes;  // narrower boxes, or none swizzled, are not emulated
}

CUresult keep(CUtensorMap* to, const TensorMap& map, bool is_valid) {
  if (is_valid) std::memcpy(to, &map, sizeof(map));
  return is_valid ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

CUresult encode_tiled(CUtensorMap* to, CUtensorMapDataType type, cuuint32_t rank, void* base,
                      const cuuint64_t* sizes, const cuuint64_t* strides, const cuuint32_t* box,
                      const cuuint32_t* steps, CUtensorMapInterleave, CUtensorMapSwizzle swizzle,
                      CUtensorMapL2promotion, CUtensorMapFloatOOBfill) {
  TensorMap map = {};
  bool is_valid = (rank == 2 || rank == 4) &&
                  encode(map, type, rank, base, sizes, strides, box[0], steps, swizzle);
  map.rows = 1;
  for (cuuint32_t i = 0; i < rank; ++i) {
    is_valid &= box[i] >= 1 && box[i] <= 256 && steps[i] == 1;
    map.box[i] = static_cast<int>(box[i]);
    if (i > 0) map.rows *= map.box[i];
  }
  return keep(to, map, is_valid);
}

CUresult encode_im2col(CUtensorMap* to, CUtensorMapDataType type, cuuint32_t rank, void* base,
                       const cuuint64_t* sizes, const cuuint64_t* strides, const int* lower, const int* upper,
                       cuuint32_t channels, cuuint32_t pixels, const cuuint32_t* steps, CUtensorMapInterleave,
                       CUtensorMapSwizzle swizzle, CUtensorMapL2promotion, CUtensorMapFloatOOBfill) {
  TensorMap map = {};
  map.is_im2col = true;
  bool is_valid = rank == 4 && encode(map, type, rank, base, sizes, strides, channels, steps, swizzle) &&
                  pixels >= 1 && pixels <= 1024;
  for (int i = 0; i < 2; ++i) {
    is_valid &= lower[i] >= -128 && lower[i] <= 127 && upper[i] >= -128 && upper[i] <= 127;
    map.lower[i] = lower[i];
    map.upper[i] = upper[i];
    map.steps[i] = static_cast<int>(steps[i + 1]);
  }
  map.rows = static_cast<int>(pixels);
  return keep(to, map, is_valid);
}

}  // namespace

}  // namespace emulator

extern "C" cudaError_t cudaGetDriverEntryPointByVersion(const char* name, void** entry, unsigned, unsigned long long,
                                                        cudaDriverEntryPointQueryResult* result) {
  *entry = std::strcmp(name, "cuTensorMapEncodeTiled") == 0
               ? reinterpret_cast<void*>(emulator::encode_tiled)
               : reinterpret_cast<void*>(emulator::encode_im2col);
  *result = cudaDriverEntryPointSuccess;
  return cudaSuccess;
}
