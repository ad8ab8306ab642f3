// Host side of the Hopper kernel: check, encode the tensor maps, launch one tile's instance.
#pragma once
#include <utility>

#include "config.h"
#include "launch.h"
#include "sm90_gemm.cuh"
#include "tensor_map.h"

namespace sparse24 {

inline CUtensorMapDataType map_type(Type type) {
  switch (type) {
    case Type::f16: return CU_TENSOR_MAP_DATA_TYPE_FLOAT16;
    case Type::bf16: return CU_TENSOR_MAP_DATA_TYPE_BFLOAT16;
    case Type::f32: return CU_TENSOR_MAP_DATA_TYPE_FLOAT32;
    case Type::s32: return CU_TENSOR_MAP_DATA_TYPE_INT32;
    default: return CU_TENSOR_MAP_DATA_TYPE_UINT8;
  }
}

inline bool copy_engine_takes(const void* base, int64_t pitch) {
  return reinterpret_cast<uintptr_t>(base) % 16 == 0 && pitch % 16 == 0;
}

template <class Shape>
const char* sm90_launch(const Gemm& gemm, const Plan& plan, int multiprocessors) {
  const int size = size_of(gemm.type), out_size = size_of(gemm.out_type);
  const int blocks = plan.cluster_m * plan.cluster_n;
  if (blocks > 1 && !Shape::kShares) return "this tile is not shared over a cluster";
  if (Shape::kTokens % (8 * plan.cluster_m) != 0) {
    return "this tile's tokens cannot be divided over so wide a cluster";
  }
  Sm90Arguments arguments;
  arguments.weight = static_cast<const uint8_t*>(gemm.weight);
  arguments.epilogue = Epilogue(gemm);
  arguments.tokens = gemm.tokens;
  arguments.features = gemm.out_features;
  arguments.row_blocks = ceil_div(gemm.out_features, kBlockRows);
  arguments.k_blocks = ceil_div(gemm.in_features, block_k(size));
  arguments.cluster_m = plan.cluster_m;
  arguments.cluster_n = plan.cluster_n;
  const int tiles_m = ceil_div(ceil_div(gemm.out_features, Shape::kRows), plan.cluster_m);
  int tiles_n = ceil_div(ceil_div(gemm.tokens, Shape::kTokens), plan.cluster_n);
  if constexpr (Shape::kIsWindow) {
    if (gemm.convolution != nullptr) {
      arguments.window = Window::of(*gemm.convolution, Shape::kTokens, size);
    }
    if (arguments.window.rows == 0 || gemm.residual != nullptr || out_size > 2 ||
        !copy_engine_takes(gemm.out, gemm.out_pitch)) {
      return "this tile is of 3 x 3 convolutions with padding 1 and at most 128 bytes of channels in a "
             "group, whose results are 16 or 8 bits wide without a residual, and of images that fit into it";
    }
    tiles_n = gemm.convolution->batch * arguments.window.tiles;
    arguments.by_image = Divider(arguments.window.tiles);
  }
  arguments.tiles = tiles_m * tiles_n;
  arguments.width = plan.raster < 1 || plan.raster > tiles_m ? tiles_m : plan.raster;
  arguments.tiles_of_strip = arguments.width * tiles_n;
  arguments.last_strip = (tiles_m - 1) / arguments.width;
  arguments.last_width = tiles_m - arguments.last_strip * arguments.width;
  arguments.by_strip = Divider(arguments.tiles_of_strip);
  arguments.by_width = Divider(arguments.width);
  arguments.by_last_width = Divider(arguments.last_width);
  arguments.stores_by_copy_engine =
      out_size <= 2 && copy_engine_takes(gemm.out, gemm.out_pitch) &&
      (gemm.residual == nullptr || copy_engine_takes(gemm.residual, gemm.residual_pitch));

  arguments.is_convolution = gemm.convolution != nullptr;
  if (arguments.is_convolution) {
    const Convolution& c = *gemm.convolution;
    arguments.convolution = c;
    arguments.group_features = gemm.out_features / c.groups;
    arguments.group_channels = c.channels / c.groups;
    arguments.channel_blocks = ceil_div(arguments.group_channels, block_k(size));
    if constexpr (Shape::kIsWindow) arguments.k_blocks = 1;  // stages of a tile
    if (plan.cluster_m != 1) return "the pixels of a convolution are not shared over a cluster";
    if (c.groups > 1 && arguments.group_features % Shape::kRows != 0) {
      return "a tile may not reach over the features of one group";
    }
  }

  CUtensorMap x_map, out_map = {}, residual_map = {};
  const int x_rows = Shape::kTokens / plan.cluster_m;
  const Window& window = arguments.window;
  const char* wrong =
      Shape::kIsWindow
          ? encode_images(&x_map, map_type(gemm.type), size, gemm.x, gemm.convolution->channels,
                          gemm.convolution->width, gemm.convolution->height, gemm.convolution->batch,
                          gemm.x_pitch, window.rows + 3, window.pitch, block_k(size))
      : arguments.is_convolution
          ? encode_pixels(&x_map, map_type(gemm.type), size, gemm.x, *gemm.convolution, gemm.x_pitch,
                          x_rows, block_k(size))
          : encode_rows(&x_map, map_type(gemm.type), size, gemm.x, gemm.tokens, gemm.in_features,
                        gemm.x_pitch, x_rows, block_k(size));
  if (wrong == nullptr && Shape::kIsWindow) {
    const Convolution& c = *gemm.convolution;
    wrong = encode_images(&out_map, map_type(gemm.out_type), out_size, gemm.out, gemm.out_features, c.out_width,
                          c.out_height, c.batch, gemm.out_pitch, window.rows, window.pitch, 64);
  } else if (wrong == nullptr && arguments.stores_by_copy_engine) {
    wrong = encode_rows(&out_map, map_type(gemm.out_type), out_size, gemm.out, gemm.tokens,
                        gemm.out_features, gemm.out_pitch, Shape::kPart, 64);
    if (wrong == nullptr && gemm.residual != nullptr) {
      wrong = encode_rows(&residual_map, map_type(gemm.out_type), out_size, gemm.residual, gemm.tokens,
                          gemm.out_features, gemm.residual_pitch, Shape::kPart, 64);
    }
  }
  if (wrong != nullptr) return wrong;

  const int clusters = multiprocessors / blocks;
  const int started = arguments.tiles < clusters ? arguments.tiles : clusters;
  return launch_clusters<&sm90_gemm_kernel<Shape>>(started * blocks, blocks, Shape::kThreads,
                                                   Shape::kSharedBytes, gemm.stream, x_map, out_map,
                                                   residual_map, arguments);
}

template <Type kType, bool kSparse, int... kTile>
const char* sm90_launch_one(std::integer_sequence<int, kTile...>, const Gemm& gemm, const Plan& plan,
                            int multiprocessors) {
  const char* result = "there is no tile of this number";
  const auto launch = [&](auto tile) {
    if constexpr (kTiles[tile].takes(size_of(kType))) {
      result = sm90_launch<Sm90Shape<kType, kSparse, tile>>(gemm, plan, multiprocessors);
    } else {
      result = "this tile is for 16-bit types";
    }
  };
  ((plan.tile == kTile ? launch(std::integral_constant<int, kTile>()) : void()), ...);
  return result;
}

// Every tile of one type, chosen by its index in kTiles.
template <Type kType, bool kSparse>
const char* sm90_launch_tile(const Gemm& gemm, const Plan& plan, int multiprocessors) {
  return sm90_launch_one<kType, kSparse>(std::make_integer_sequence<int, kTileCount>(), gemm, plan,
                                         multiprocessors);
}

}  // namespace sparse24
