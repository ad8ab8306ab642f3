"""INT8 in integer arithmetic: int32 sums, one fp32 scale per channel; the reference for kernels.

    xq = clamp(round_half_even(x / s_x), -127, 127)              int8
    a  = sum of xq wq                                            int32
    y  = float(a) * (s_x * s_w) + b                              fp32
    yq = clamp(round_half_even(y / s_y), -127, 127)              int8, the next layer's input

Every operation of the last lines is one fp32 operation, in this order; float(a) rounds half to even
above 2^24. The simulation (simulate.py) is tested to agree with this to the last bit.
"""

import itertools
import math

import torch
from torch import Tensor, nn

from workbench.quant.layers import LEVELS
from workbench.sparsity.layouts import TRANSPOSED


def rounded(values: Tensor, scale: Tensor) -> Tensor:
    """The int8 integers of an activation, also what requantizes a layer's output."""
    return (values.float() / scale).round().clamp(-LEVELS, LEVELS).to(torch.int8)


def accumulated(module: nn.Module, inputs: Tensor, weight: Tensor) -> Tensor:
    """The int32 sums of a linear or convolution layer with int8 weights on int8 inputs."""
    if isinstance(module, nn.Linear):
        return linear(inputs, weight)
    if isinstance(module.padding, str) or module.padding_mode != "zeros":
        raise ValueError(
            f"padding {module.padding!r} in mode {module.padding_mode!r}; numbers of zeros are "
            "allowed: pad the input before it is quantized"
        )
    find = _transposed if isinstance(module, TRANSPOSED) else _convolved
    return find(module, inputs.int(), weight.int())


def linear(inputs: Tensor, weight: Tensor) -> Tensor:
    """Int32 sums [.., out] of int8 inputs [.., in] and weights [out, in]."""
    return inputs.int() @ weight.int().T


def scaled(sums: Tensor, input_scale: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
    """A layer's fp32 output from its sums, whose channels lie where `scale` [out] broadcasts."""
    output = sums.float() * (input_scale * scale)
    return output if bias is None else output + bias


def layer(
    module: nn.Module, values: Tensor, input_scale: Tensor, weight: Tensor, scale: Tensor
) -> Tensor:
    """The fp32 output of a linear or convolution layer on fp32 values, computed in integers."""
    sums = accumulated(module, rounded(values, input_scale), weight)
    places = (1,) * (weight.ndim - 2)
    bias = None if module.bias is None else module.bias.float().view(-1, *places)
    return scaled(sums, input_scale, scale.view(-1, *places), bias)


def add(left: Tensor, left_scale: Tensor, right: Tensor, right_scale: Tensor) -> Tensor:
    """The fp32 sum of two int8 activations at their scales."""
    return left.float() * left_scale + right.float() * right_scale


def _convolved(module: nn.Module, inputs: Tensor, weight: Tensor) -> Tensor:
    """One multiplication per place of the kernel, summed over them."""
    padding = [side for size in reversed(module.padding) for side in (size, size)]
    inputs = nn.functional.pad(inputs, padding)
    kernel = weight.shape[2:]
    grouped = weight.unflatten(0, (module.groups, -1))  # [groups, out / groups, in / groups, ..]
    sizes = [
        (size - dilation * (k - 1) - 1) // stride + 1
        for size, k, stride, dilation in zip(
            inputs.shape[2:], kernel, module.stride, module.dilation, strict=True
        )
    ]
    total = 0
    for place in itertools.product(*map(range, kernel)):
        window = inputs
        for dim, (at, size) in enumerate(zip(place, sizes, strict=True), start=2):
            start, stride = at * module.dilation[dim - 2], module.stride[dim - 2]
            window = window.narrow(dim, start, (size - 1) * stride + 1)
            window = window.index_select(dim, torch.arange(0, window.shape[dim], stride))
        window = window.flatten(2).unflatten(1, (module.groups, -1))
        part = torch.einsum("goc,bgcp->bgop", grouped[:, :, :, *place], window)
        total = total + part.flatten(1, 2)
    return total.unflatten(2, sizes)


def _transposed(module: nn.Module, inputs: Tensor, weight: Tensor) -> Tensor:
    """Each input spread over the places of the kernel, then the padding cut away."""
    kernel, sizes = weight.shape[2:], inputs.shape[2:]
    grouped = weight.unflatten(0, (module.groups, -1))  # [groups, in / groups, out / groups, ..]
    full = [
        (size - 1) * stride + dilation * (k - 1) + 1 + extra
        for size, k, stride, dilation, extra in zip(
            sizes, kernel, module.stride, module.dilation, module.output_padding, strict=True
        )
    ]
    flat = inputs.flatten(2).unflatten(1, (module.groups, -1))
    total = torch.zeros(len(inputs), module.out_channels, math.prod(full), dtype=torch.int32)
    places = torch.arange(math.prod(full)).view(full)
    for place in itertools.product(*map(range, kernel)):
        reached = places
        for dim, (at, size) in enumerate(zip(place, sizes, strict=True)):
            start, stride = at * module.dilation[dim], module.stride[dim]
            reached = reached.narrow(dim, start, (size - 1) * stride + 1)
            reached = reached.index_select(dim, torch.arange(0, reached.shape[dim], stride))
        part = torch.einsum("gco,bgcp->bgop", grouped[:, :, :, *place], flat).flatten(1, 2)
        total.index_add_(2, reached.flatten(), part)
    total = total.unflatten(2, full)
    for dim, cut in enumerate(module.padding, start=2):
        total = total.narrow(dim, cut, total.shape[dim] - 2 * cut)
    return total
