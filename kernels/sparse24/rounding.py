"""Rounding to int8: of weights, and between layers, alone or behind a layer norm.

Between layers it is one kernel on a GPU. A step goes in as its reciprocal, one float32 on the
device: what follows the sums of a product is multiplied by it too, so that a value becomes the same
integer wherever it is rounded.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

LEVELS = 127  # symmetric and narrow, as the kernels clip


def to_integers(weight: Tensor, steps: Tensor | float) -> Tensor:
    """The int8 integers of a weight [out, ..] in steps, one or [out]: rounded half to even."""
    steps = torch.as_tensor(steps, dtype=torch.float32, device=weight.device)
    steps = torch.where(steps > 0, steps, 1.0).view(-1, *[1] * (weight.dim() - 1))
    return (weight.float() / steps).round().clamp(-LEVELS, LEVELS).to(torch.int8)


def to_int8(x: Tensor, reciprocal: Tensor) -> Tensor:
    """x over its step, rounded half to even and clipped to [-127, 127]; images channels_last."""
    return _flat(_rounded, x, reciprocal)


def from_int8(x: Tensor, step: Tensor, dtype: torch.dtype) -> Tensor:
    """The values of int8 x in a float type; images channels_last."""
    return _flat(_values, x, step, dtype)


def norm(x: Tensor, layer: nn.LayerNorm, reciprocal: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """The layer norm of x, and with a reciprocal its int8 form beside it, from one kernel.

    The residual's add is in the product before it. torch's own kernel takes 1.7 times as long for
    rows of 1024, as many as BERT-Large has at batch 256.
    """
    told = layer.normalized_shape, layer.weight, layer.bias, layer.eps
    normed, rounded = _kernel(_normed, x)(x.reshape(-1, *layer.normalized_shape), *told, reciprocal)
    return normed.view(x.shape), None if rounded is None else rounded.view(x.shape)


def _rounded(x: Tensor, reciprocal: Tensor) -> Tensor:
    return (x.float() * reciprocal).round().clamp(-LEVELS, LEVELS).to(torch.int8)


def _values(x: Tensor, step: Tensor, dtype: torch.dtype) -> Tensor:
    return (x.float() * step).to(dtype)


def _normed(
    x: Tensor,
    shape: tuple[int, ...],
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    reciprocal: Tensor | None,
) -> tuple[Tensor, Tensor | None]:
    normed = F.layer_norm(x, shape, weight, bias, eps)
    return normed, None if reciprocal is None else _rounded(normed, reciprocal)


def _flat(function: Callable, x: Tensor, *args: Any) -> Tensor:
    """A function of each value for itself, in one dimension: one compiled kernel for all shapes."""
    rows = x.permute(0, 2, 3, 1) if x.dim() == 4 else x
    found = _kernel(function, x)(rows.reshape(-1), *args).view(rows.shape)
    return found.permute(0, 3, 1, 2) if x.dim() == 4 else found


def _kernel(function: Callable, x: Tensor) -> Callable:
    """The function itself, or on a GPU what torch's compiler makes of it: one kernel, not four."""
    if not x.is_cuda or torch.compiler.is_compiling():
        return function
    return _compiled(function)


@cache
def _compiled(function: Callable) -> Callable:
    # of a norm the rows alone vary, and a row of known size is faster
    return torch.compile(function, fullgraph=True, dynamic=None if function is _normed else True)
