// The copy engine: bytes, boxes and pixels into shared memory, boxes out of it.
#pragma once
#include <cuda.h>

#include "sm90_state.h"

namespace emulator {

// What lies in a CUtensorMap here. Dimension 0 is the innermost; lower, upper and steps are those of
// im2col, of W and H.
struct TensorMap {
  uint8_t* base;
  int64_t strides[4];  // bytes
  int sizes[4];
  int size;            // of an element
  int row_bytes, rows;  // of a box
  int box[4];           // of a tiled map
  int swizzle_bytes;
  int lower[2], upper[2], steps[2];
  int rank;
  bool is_im2col;
};
static_assert(sizeof(TensorMap) <= sizeof(CUtensorMap));

struct Pixel {
  int w, h, n;
};

// To the same place in every block of `mask`, whose mbarriers hear of it.
void copy_bytes(uint32_t to, const void* from, uint32_t bytes, uint32_t barrier, uint32_t mask);
void copy_box(uint32_t to, const CUtensorMap& map, int x, int y, uint32_t barrier, uint32_t mask);
void copy_pixels(uint32_t to, const CUtensorMap& map, int channel, Pixel first, int s, int r,
                 uint32_t barrier);
void store_box(const CUtensorMap& map, uint32_t from, int x, int y);
// Of four dimensions, from the channel and the pixel on.
void copy_images(uint32_t to, const CUtensorMap& map, int channel, Pixel first, uint32_t barrier);
void store_images(const CUtensorMap& map, uint32_t from, int channel, Pixel first);

}  // namespace emulator
