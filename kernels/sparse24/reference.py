"""The operation in plain torch: the truth for tests, and what runs where no kernel does."""

import torch
from torch import Tensor
from torch.nn import functional as F

from .geometry import Geometry
from .seam import ACTIVATIONS, DTYPES

_NAMES = {number: name for name, number in ACTIVATIONS.items()}


def linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    scale: Tensor | None = None,
    out_type: int = 0,
    activation: int = 0,
    residual_scale: float = 1.0,
    out_scale: float = 1.0,
    precision: torch.dtype = torch.float32,
) -> Tensor:
    """The result [tokens, out] of a dense weight [out, in], by the formula of csrc/gemm.h.

    activation(scale * (x @ weight^T) + bias + residual_scale * residual), then times out_scale,
    for int8 rounded half to even and clipped to [-127, 127]. Sums of int8 are exact; all else is
    computed in `precision`, which is float64 where the result serves as the truth.
    """
    dtype = DTYPES[out_type]
    total = sums(x, weight, torch.float64 if dtype == torch.int32 else precision)
    if dtype != torch.int32:
        total = epilogue(total, bias, residual, scale, activation, residual_scale, out_scale)
    return stored(total, dtype)


def convolve(
    x: Tensor,
    weight: Tensor,
    geometry: Geometry,
    groups: int = 1,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    scale: Tensor | None = None,
    out_type: int = 0,
    activation: int = 0,
    residual_scale: float = 1.0,
    out_scale: float = 1.0,
    precision: torch.dtype = torch.float32,
) -> Tensor:
    """As `linear`, [batch * out_height * out_width, out] of x [batch, height, width, channels].

    The weight is dense, [out, channels / groups, height, width].
    """
    dtype = DTYPES[out_type]
    wide = torch.float64 if dtype == torch.int32 else precision
    total = convolution_sums(x, weight, geometry, groups, wide)
    if dtype != torch.int32:
        total = epilogue(total, bias, residual, scale, activation, residual_scale, out_scale)
    return stored(total, dtype)


def sums(x: Tensor, weight: Tensor, precision: torch.dtype = torch.float32) -> Tensor:
    """x @ weight^T in `precision`; of int8 first summed exactly: a double holds every int32."""
    within = torch.float64 if x.dtype == torch.int8 else precision
    with torch.autocast(x.device.type, enabled=False):
        return (x.to(within) @ weight.to(within).T).to(precision)


def convolution_sums(
    x: Tensor,
    weight: Tensor,
    geometry: Geometry,
    groups: int = 1,
    precision: torch.dtype = torch.float32,
) -> Tensor:
    """The convolution's sums [pixels, out] in `precision`; of int8 first summed exactly."""
    within = torch.float64 if x.dtype == torch.int8 else precision
    image = x.permute(0, 3, 1, 2).to(within)
    _, *walk = geometry
    with torch.autocast(x.device.type, enabled=False):
        total = F.conv2d(image, weight.to(within), None, *walk, groups)
    return total.permute(0, 2, 3, 1).flatten(0, 2).to(precision)


def epilogue(
    total: Tensor,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    scale: Tensor | None = None,
    activation: int = 0,
    residual_scale: float = 1.0,
    out_scale: float = 1.0,
) -> Tensor:
    """What the kernels do to the sums before they round them, in the type of `total`."""
    if scale is not None:
        total = total * scale.to(total.dtype)
    if bias is not None:
        total = total + bias.to(total.dtype)
    if residual is not None:
        added = residual.to(total.dtype)
        total = total + (added if residual_scale == 1.0 else added * residual_scale)
    result = activated(total, activation)
    return result if out_scale == 1.0 else result * out_scale  # not a kernel for nothing


def activated(total: Tensor, activation: int) -> Tensor:
    """An activation by its number."""
    name = _NAMES[activation]
    if name is None:
        return total
    if name == "relu":
        return total.relu()
    return F.gelu(total, approximate="tanh" if name == "gelu_tanh" else "none")


def stored(total: Tensor, dtype: torch.dtype) -> Tensor:
    """The result in the type it is stored in; to int8 rounded half to even and clipped."""
    if dtype == torch.int8:  # torch rounds half to even
        total = total.round().clamp(-127, 127)
    return total.to(dtype)
