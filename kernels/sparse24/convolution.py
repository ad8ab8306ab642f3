"""conv2d: a convolution by a packed weight, with everything behind it in the same kernel."""

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from . import conv_candidates, reference
from .aligned import aligned
from .candidates import Finish, signature
from .conv_weight import SparseConvWeight
from .geometry import Geometry, GeometryError, Pair
from .gradients import Convolution
from .linear import LinearError, cast, chosen, finish_of, product, wants_gradient
from .scales import Scales

Walk = int | Sequence[int]


class ConvError(LinearError):
    """Arguments that `conv2d` cannot take."""


class Call(NamedTuple):
    """The arguments of a `conv2d` as the ops take them."""

    x: Tensor  # [batch, height, width, channels], pixels one pitch apart
    finish: Finish
    geometry: Geometry
    out: tuple[int, int, int]  # batch, height, width of the result

    def kind(self) -> tuple:
        """What, with the batch, the time depends on: the epilogue, the geometry, the image."""
        return signature(self.finish), self.geometry, tuple(self.x.shape[1:3])


def conv2d(
    x: Tensor,
    w: SparseConvWeight,
    bias: Tensor | None = None,
    stride: Walk = 1,
    padding: Walk | str = 0,
    dilation: Walk = 1,
    groups: int | None = None,
    activation: str | None = None,
    residual: Tensor | None = None,
    out_dtype: torch.dtype | None = None,
    scales: Scales | None = None,
) -> Tensor:
    """activation(scales * conv2d(x, w) + bias + residual), [batch, out, height, width].

    x [batch, in, height, width] has the type of the weight and channels_last memory; any other is
    copied to it first, as are pixels that are no multiple of 16 bytes apart. So has the result,
    whose pixels lie a multiple of 16 bytes apart, and the residual [batch, out, height, width].
    stride, padding and dilation as torch takes them, strides up to 8, padding `same` too; groups
    are the weight's. Types, activations, scales and gradients are those of `linear`, to which a
    1x1 convolution of stride 1 without padding goes. Raises ConvError; `why` says what runs.
    """
    call = prepared(
        x, w, bias, stride, padding, dilation, groups, activation, residual, out_dtype, scales
    )
    rows = _rows(call, w)
    return rows.view(*call.out, w.out_channels).permute(0, 3, 1, 2)


def prepared(
    x: Tensor,
    w: SparseConvWeight,
    bias: Tensor | None,
    stride: Walk,
    padding: Walk | str,
    dilation: Walk,
    groups: int | None,
    activation: str | None,
    residual: Tensor | None,
    out_dtype: torch.dtype | None,
    scales: Scales | None,
) -> Call:
    """The arguments as the ops take them; ConvError for what they do not."""
    if type(w) is not SparseConvWeight:
        raise ConvError(
            f"w is {type(w).__name__}; give a SparseConvWeight: sparse24.pack_conv2d(weight)"
        )
    if groups not in (None, w.groups):
        raise ConvError(f"groups is {groups}; the weight was packed with groups={w.groups}")
    x, residual, out_dtype = cast(x, w, residual, out_dtype)
    wanted = f"[batch, {w.in_channels}, height, width]"
    if x.dtype is not w.dtype or x.device != w.device or x.dim() != 4:
        raise _refused("x", x, wanted, w)
    batch, channels, height, width = x.shape
    if channels != w.in_channels:
        raise _refused("x", x, wanted, w)
    try:
        geometry = _geometry(w.kernel, stride, padding, dilation)
        out = batch, *geometry.out(height, width)
    except GeometryError as error:
        raise ConvError(f"x is {list(x.shape)} and {error}") from None
    if residual is not None:
        wanted = batch, w.out_channels, *out[1:]
        if residual.shape != wanted:
            shape = str(list(wanted))
            raise _refused("residual", residual, shape, w, residual.dtype)
        residual = residual.permute(0, 2, 3, 1)
    finish = finish_of(w.matrix, out, bias, activation, residual, out_dtype, scales)
    return Call(_pixels(x), finish, geometry, out)


def is_product(w: SparseConvWeight, geometry: Geometry) -> bool:
    """Whether `linear` computes it: the pixels are rows of a matrix product."""
    return geometry.is_pointwise and w.super_groups == 1


def _rows(call: Call, w: SparseConvWeight) -> Tensor:
    """The result [pixels, out], by what is fastest or for gradients."""
    x, finish, geometry, _ = call
    if is_product(w, geometry):
        return product(x.flatten(0, 2), w.matrix, finish)
    if wants_gradient(x, w, finish):
        bias, residual, scale, out_type, activation, residual_scale, _ = finish
        numbers = out_type, residual_scale, geometry, w.form
        result = Convolution.apply(x, w.packed, bias, residual, scale, *numbers)
        return reference.activated(result, activation)
    if w.tuned and (rung := chosen(w, call.kind(), x.shape[0])):
        copy = w.copies.get(rung.choice.backend)
        return conv_candidates.run(rung.choice, x, w, copy, finish, geometry)
    return conv_candidates.ours(x, w.packed, w.form, finish, geometry)


def _geometry(kernel: Pair, *walk: Walk | str) -> Geometry:
    """The geometry of the arguments, which a layer gives again and again."""
    if torch.compiler.is_compiling() or any(isinstance(given, list) for given in walk):
        return Geometry.of(kernel, *walk)
    return _known(kernel, *walk)


@lru_cache(maxsize=1024)
def _known(kernel: Pair, *walk: Walk | str) -> Geometry:
    return Geometry.of(kernel, *walk)


def _pixels(x: Tensor) -> Tensor:
    """x as [batch, height, width, channels], pixels one pitch apart; a copy only if it must be."""
    pixels = x.permute(0, 2, 3, 1)
    _, height, width, channels = pixels.shape
    images, rows, pitch, step = pixels.stride()
    size = x.element_size()
    if step == 1 and pitch >= channels and pitch * size % 16 == 0:
        whole = rows == width * pitch and images == height * rows
        # a traced tensor does not say where it starts
        traced = torch.compiler.is_compiling()
        if whole and (traced or pixels.storage_offset() * size % 16 == 0):
            return pixels
    return aligned(pixels, channels).view(pixels.shape)


def _refused(
    name: str, given: Tensor, shape: str, w: SparseConvWeight, dtype: torch.dtype | None = None
) -> ConvError:
    kinds = (str(kind).removeprefix("torch.") for kind in (given.dtype, dtype or w.dtype))
    return ConvError(
        f"{name} is {next(kinds)} {list(given.shape)} on {given.device}; allowed is {next(kinds)} "
        f"{shape} on {w.device}, as the weight is {w}: convert or move it, or pack the weight anew"
    )
