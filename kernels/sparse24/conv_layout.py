"""A convolution's weight as the matrix that is packed: columns (r, s, c), narrow groups merged.

The kernel multiplies whole blocks of K, so for every place (r, s) of the kernel a group's channels
are padded to whole blocks with zeros. Groups narrower than a block lie side by side in one
super-group, zeros off the diagonal, which stays 2:4; the kernel then sees super-groups alone.
All of it moves elements and never computes, so it is exact for every type.
"""

import torch
from torch import Tensor
from torch.nn.functional import pad

from . import layout
from .layout import BLOCK_ROWS, PackError, block_k


def merge(features: int, channels: int, groups: int, dtype: torch.dtype) -> int:
    """How many groups of `channels` channels make a super-group; PackError where none do.

    A super-group is whole blocks of channels and of features, unless it is the only one.
    """
    if groups == 1:
        return 1
    block, own = block_k(dtype), features // groups
    if channels == 1:
        raise PackError(
            "the convolution is depthwise: one channel a group has no 2:4; keep it dense"
        )
    if block % channels and channels % block:
        raise PackError(
            f"a group has {channels} channels; allowed are divisors and multiples of {block}, a "
            f"block of {dtype}: keep the convolution dense"
        )
    for count in range(1, groups + 1):
        if groups % count == 0 and count * channels % block == 0 and count * own % BLOCK_ROWS == 0:
            return count
    if groups * channels <= block:
        return groups
    raise PackError(
        f"no number of its {groups} groups of {channels} channels and {own} features makes whole "
        f"blocks of {block} channels and {BLOCK_ROWS} features: keep the convolution dense"
    )


def columns(shape: tuple[int, ...], groups: int, dtype: torch.dtype) -> int:
    """Columns of the matrix of a weight [K, C / groups, R, S]."""
    features, channels, height, width = shape
    wide = channels * merge(features, channels, groups, dtype)
    if height * width == 1 and wide == channels * groups:
        return wide  # a plain product's weight, whose last block pads itself
    block = block_k(dtype)
    return height * width * -(-wide // block) * block


def refuse(weight: Tensor, groups: int) -> None:
    """Raise PackError for a weight [K, C / groups, R, S] whose form cannot be packed."""
    if weight.dim() != 4 or 0 in weight.shape or weight.layout != torch.strided:
        raise PackError(
            f"the weight is {list(weight.shape)} {weight.layout}; allowed is a strided "
            "[out, in / groups, height, width]"
        )
    if weight.dtype not in layout.ELEMENTS:
        raise PackError(
            f"the weight is {weight.dtype}; allowed are {layout.listed()}: cast it first"
        )
    if not isinstance(groups, int) or groups < 1 or weight.shape[0] % groups:
        raise PackError(
            f"groups is {groups!r}; allowed are divisors of the weight's {weight.shape[0]} features"
        )
    merge(weight.shape[0], weight.shape[1], groups, weight.dtype)
    if weight.shape[1] % 4:
        raise PackError(
            f"a group has {weight.shape[1]} channels; 2:4 needs a multiple of 4: keep it dense"
        )


def refuse_values(weight: Tensor, sparse: bool) -> None:
    """Raise PackError by feature, place and channels for what is not 2:4, NaN or infinite."""
    features, channels, _, width = weight.shape
    flat = weight.detach().permute(0, 2, 3, 1).flatten(1).contiguous()
    bad = layout.bad_group(flat, sparse)
    if bad < 0:
        return
    feature, group = divmod(bad, flat.shape[1] // 4)
    place, within = divmod(group, channels // 4)
    first = 4 * within
    at = f"feature {feature}, row {place // width} and column {place % width} of the kernel"
    at += f", channels {first} to {first + 3}"
    layout.refuse_four(flat[feature, 4 * group : 4 * group + 4], at, "channels")


def matrix(weight: Tensor, groups: int) -> Tensor:
    """The matrix [K, columns] of a weight [K, C / groups, R, S]."""
    shape, dtype = tuple(weight.shape), weight.dtype
    count = merge(shape[0], shape[1], groups, dtype)
    bits = layout.integers(weight.detach())
    if count > 1:
        features, channels, height, width = shape
        size = (groups // count, count, features // groups)
        wide = bits.new_zeros(*size, count, channels, height, width)
        each = torch.arange(count, device=bits.device)
        wide[:, each, :, each] = bits.view(*size, channels, height, width).transpose(0, 1)
        bits = wide.view(features, count * channels, height, width)
    flat = bits.permute(0, 2, 3, 1)
    places = shape[2] * shape[3]
    extra = columns(shape, groups, dtype) // places - flat.shape[-1]
    return pad(flat, (0, extra)).flatten(1).contiguous().view(dtype)


def merged(matrix: Tensor, kernel: tuple[int, int], channels: int) -> Tensor:
    """The weight [K, channels, R, S] of super-groups of `channels` channels, of a matrix."""
    places = kernel[0] * kernel[1]
    flat = layout.integers(matrix).view(matrix.shape[0], *kernel, matrix.shape[1] // places)
    return flat[..., :channels].permute(0, 3, 1, 2).contiguous().view(matrix.dtype)


def weight(matrix: Tensor, shape: tuple[int, int, int, int], groups: int) -> Tensor:
    """The inverse of `matrix`: the weight of the shape [K, C / groups, R, S]."""
    features, channels, *kernel = shape
    count = merge(features, channels, groups, matrix.dtype)
    wide = merged(matrix, tuple(kernel), count * channels)
    if count == 1:
        return wide
    size = (groups // count, count, features // groups)
    bits = layout.integers(wide).view(*size, count, channels, *kernel)
    each = torch.arange(count, device=bits.device)
    own = bits[:, each, :, each].transpose(0, 1)
    return own.reshape(shape).view(matrix.dtype)
