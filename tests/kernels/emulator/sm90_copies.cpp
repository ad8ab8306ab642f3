// The copy engine on a CPU. A copy into shared memory happens at once, or when every thread waits.
#include "sm90_copies.h"

namespace emulator {

namespace {

TensorMap decode(const CUtensorMap& map, bool is_im2col) {
  TensorMap decoded;
  std::memcpy(&decoded, &map, sizeof(decoded));
  if (decoded.rank == 0) fail("a copy by a tensor map that was never encoded");
  if (decoded.is_im2col != is_im2col) fail("a copy by a tensor map of the other mode");
  return decoded;
}

// Where the copy engine puts a box's byte: its 16-byte chunks are swizzled by address.
uint32_t swizzled(uint32_t address, int swizzle_bytes) {
  return address ^ (address >> 3 & (swizzle_bytes - 16));
}

void require_box(uint32_t at, const TensorMap& map) {
  require_shared(at, map.rows * map.row_bytes, 128, "a box is unaligned or outside shared memory");
  require_kernel_before();
  require_fenced(at, map.rows * map.row_bytes);
}

// Puts bytes, where `mask` says, and tells the mbarriers, now or late.
void deliver(uint32_t to, std::vector<uint8_t> bytes, int row_bytes, int swizzle_bytes, uint32_t barrier,
             uint32_t mask) {
  if (mask == 0 || mask >> cluster.size() != 0) fail("a copy to a block that the cluster has not");
  Work work = [=] {
    for (int i = 0; i < static_cast<int>(cluster.size()); ++i) {
      if ((mask >> i & 1) == 0) continue;
      for (uint32_t at = 0; at < bytes.size(); at += 16) {
        const uint32_t place = swizzle_bytes == 0 ? to + at : swizzled(to + at, swizzle_bytes);
        std::memcpy(cluster[i].bytes() + place, &bytes[at], 16);
      }
      expect_bytes(mbarrier_at(i, barrier), -static_cast<int64_t>(bytes.size()));
    }
  };
  if (settings.copies_are_late) {
    late.push_back(std::move(work));
  } else {
    work();
  }
}

// A row of a box, zeros beyond the tensor: `begin` is its first element's place in dimension 0.
void read_row(const TensorMap& map, const uint8_t* row, int begin, uint8_t* to) {
  for (int i = 0; i < map.row_bytes / map.size; ++i) {
    const int at = begin + i;
    if (row == nullptr || at < 0 || at >= map.sizes[0]) {
      std::memset(to + i * map.size, 0, map.size);
    } else {
      std::memcpy(to + i * map.size, row + int64_t{at} * map.size, map.size);
    }
  }
}

// The row of pixel (w, h, n), null in the padding and behind the last image.
const uint8_t* row_of(const TensorMap& map, Pixel at) {
  const int place[3] = {at.w, at.h, at.n};
  const uint8_t* row = map.base;
  for (int i = 0; i < 3; ++i) {
    if (place[i] < 0 || place[i] >= map.sizes[i + 1]) return nullptr;
    row += place[i] * map.strides[i + 1];
  }
  return row;
}

}  // namespace

void copy_bytes(uint32_t to, const void* from, uint32_t bytes, uint32_t barrier, uint32_t mask) {
  if (bytes % 16 != 0 || reinterpret_cast<uintptr_t>(from) % 16 != 0) fail("a bulk copy is unaligned");
  if (!is_readable(from, bytes)) fail("a bulk copy reads outside x and the weight");
  require_shared(to, bytes, 16, "a bulk copy is unaligned or outside shared memory");
  require_kernel_before();
  require_fenced(to, bytes);
  const auto* begin = static_cast<const uint8_t*>(from);
  deliver(to, {begin, begin + bytes}, bytes, 0, barrier, mask);
}

void copy_box(uint32_t to, const CUtensorMap& given, int x, int y, uint32_t barrier, uint32_t mask) {
  const TensorMap map = decode(given, false);
  require_box(to, map);
  std::vector<uint8_t> box(map.rows * map.row_bytes);
  for (int i = 0; i < map.rows; ++i) {
    const bool is_inside = y + i >= 0 && y + i < map.sizes[1];
    read_row(map, is_inside ? map.base + (y + i) * map.strides[1] : nullptr, x, &box[i * map.row_bytes]);
  }
  deliver(to, std::move(box), map.row_bytes, map.swizzle_bytes, barrier, mask);
}

void copy_pixels(uint32_t to, const CUtensorMap& given, int channel, Pixel at, int s, int r,
                 uint32_t barrier) {
  const TensorMap map = decode(given, true);
  require_box(to, map);
  if (s > 255 || r > 255) fail("an offset of im2col is above 255");
  std::vector<uint8_t> box(map.rows * map.row_bytes);
  // The bounding box: from `lower` to as far beyond the last pixel as `upper`.
  const int last_w = map.sizes[1] - 1 + map.upper[0], last_h = map.sizes[2] - 1 + map.upper[1];
  for (int i = 0; i < map.rows; ++i) {
    const bool is_in_box = at.w >= map.lower[0] && at.w <= last_w && at.h >= map.lower[1] && at.h <= last_h;
    if (!is_in_box && at.n < map.sizes[3]) fail("im2col starts outside its bounding box");
    read_row(map, row_of(map, {at.w + s, at.h + r, at.n}), channel, &box[i * map.row_bytes]);
    if ((at.w += map.steps[0]) <= last_w) continue;
    at.w = map.lower[0];
    if ((at.h += map.steps[1]) <= last_h) continue;
    at.h = map.lower[1];
    ++at.n;
  }
  deliver(to, std::move(box), map.row_bytes, map.swizzle_bytes, barrier, 1 << rank);
}

// Late, it reads shared memory when its group is waited for.
void store_box(const CUtensorMap& given, uint32_t from, int x, int y) {
  const TensorMap map = decode(given, false);
  require_box(from, map);
  start_copy([=] {
    for (int i = 0; i < map.rows; ++i) {
      if (y + i < 0 || y + i >= map.sizes[1]) continue;
      for (int at = 0; at < map.row_bytes; at += map.size) {
        const int column = x + at / map.size;
        if (column < 0 || column >= map.sizes[0]) continue;
        std::memcpy(map.base + (y + i) * map.strides[1] + int64_t{column} * map.size,
                    shared + swizzled(from + i * map.row_bytes + at, map.swizzle_bytes), map.size);
      }
    }
  });
}

// The pixel of a box's row.
Pixel pixel_of(const TensorMap& map, Pixel first, int row) {
  return {first.w + row % map.box[1], first.h + row / map.box[1] % map.box[2],
          first.n + row / map.box[1] / map.box[2]};
}

void copy_images(uint32_t to, const CUtensorMap& given, int channel, Pixel first, uint32_t barrier) {
  const TensorMap map = decode(given, false);
  if (map.rank != 4) fail("a copy of images by a map of fewer dimensions");
  require_box(to, map);
  std::vector<uint8_t> box(map.rows * map.row_bytes);
  for (int i = 0; i < map.rows; ++i) {
    read_row(map, row_of(map, pixel_of(map, first, i)), channel, &box[i * map.row_bytes]);
  }
  deliver(to, std::move(box), map.row_bytes, map.swizzle_bytes, barrier, 1 << rank);
}

void store_images(const CUtensorMap& given, uint32_t from, int channel, Pixel first) {
  const TensorMap map = decode(given, false);
  if (map.rank != 4) fail("a store of images by a map of fewer dimensions");
  require_box(from, map);
  start_copy([=] {
    for (int i = 0; i < map.rows; ++i) {
      auto* row = const_cast<uint8_t*>(row_of(map, pixel_of(map, first, i)));
      for (int at = 0; row != nullptr && at < map.row_bytes; at += map.size) {
        const int column = channel + at / map.size;
        if (column < 0 || column >= map.sizes[0]) continue;
        std::memcpy(row + int64_t{column} * map.size,
                    shared + swizzled(from + i * map.row_bytes + at, map.swizzle_bytes), map.size);
      }
    }
  });
}

}  // namespace emulator
