"""The ops as torch knows them: schemas, CPU side (the reference) and fakes; csrc/ops.cpp is CUDA's.

`linear`: x [tokens, in_features] has contiguous columns and a row pitch of a multiple of 16 bytes;
so has residual [tokens, out_features], which is of the type of the result. Both
start at a multiple of 16 bytes. `packed` is the uint8
tensor of csrc/layout.h, bias [out_features] float16, bfloat16 or float32, scale [out_features]
float32. `element`, `out_type` and `activation` are the numbers of seam.py; `plan` is a Plan's
number, -1 for the cost model's or -2 for the Ampere kernel on any card. The result [tokens,
out_features] has contiguous columns and rows `seam.pitch` apart: 16 bytes' multiple, so it is
contiguous for all but odd sizes. tokens may be 0.

`convolve`: x [batch, height, width, channels], channels contiguous and pixels one pitch of a
multiple of 16 bytes apart; the packed weight is the matrix of conv_layout.py, its columns (r, s, c)
with a group's channels padded to whole blocks; kernel, stride, padding and dilation are pairs of
height and width; groups, where several, are whole blocks of channels and of features. The result is
[batch * out_height * out_width, out_features], as `linear`'s. The Hopper kernel alone has it.

`linear_reference` and `convolve_reference` are the same in plain torch, on every device; they take
no notice of `plan`.

`pack` raises for a weight that cannot be packed and so waits for the device; `unpack` does not.
"""

import torch
from torch import Tensor

from . import conv_layout, layout, reference
from .geometry import Geometry
from .seam import DTYPES, pitch

_library = torch.library.Library("sparse24", "DEF")
_LINEAR = (
    "(Tensor x, Tensor packed, Tensor? bias, Tensor? residual, Tensor? scale, "
    "int out_features, int in_features, int element, int out_type, int activation, "
    "float residual_scale, float out_scale, bool sparse, int plan) -> Tensor"
)
_library.define("linear" + _LINEAR)
_library.define("linear_reference" + _LINEAR)
_CONVOLVE = (
    "(Tensor x, Tensor packed, Tensor? bias, Tensor? residual, Tensor? scale, "
    "int out_features, int[] kernel, int[] stride, int[] padding, int[] dilation, int groups, "
    "int element, int out_type, int activation, float residual_scale, float out_scale, "
    "bool sparse, int plan) -> Tensor"
)
_library.define("convolve" + _CONVOLVE)
_library.define("convolve_reference" + _CONVOLVE)
_library.define("pack(Tensor weight, bool sparse) -> Tensor")
_library.define("pack_raw(Tensor weight, Tensor(a!) packed, Tensor(b!) bad, bool sparse) -> ()")
_library.define("unpack(Tensor packed, int rows, int columns, int element, bool sparse) -> Tensor")
# the cost model of csrc/config.cpp: the best plan's number, and a plan's predicted seconds
_SHAPE = "int tokens, int in_features, int out_features, int element, bool sparse"
_library.define(f"plan({_SHAPE}, int multiprocessors, int groups=0) -> int")
_library.define(f"predict(int plan, {_SHAPE}, int multiprocessors) -> float")


def _linear(
    x: Tensor,
    packed: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    scale: Tensor | None,
    out_features: int,
    in_features: int,
    element: int,
    out_type: int,
    activation: int,
    residual_scale: float,
    out_scale: float,
    sparse: bool,
    plan: int,
) -> Tensor:
    weight = layout.unpack(packed, out_features, in_features, DTYPES[element], sparse)
    result = reference.linear(
        x, weight, bias, residual, scale, out_type, activation, residual_scale, out_scale
    )
    return _empty(x, out_features, out_type).copy_(result)


def _convolve(
    x: Tensor,
    packed: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    scale: Tensor | None,
    out_features: int,
    kernel: list[int],
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
    element: int,
    out_type: int,
    activation: int,
    residual_scale: float,
    out_scale: float,
    sparse: bool,
    plan: int,
) -> Tensor:
    dtype, channels = DTYPES[element], x.shape[3] // groups
    block = layout.block_k(dtype)
    columns = kernel[0] * kernel[1] * -(-channels // block) * block
    matrix = layout.unpack(packed, out_features, columns, dtype, sparse)
    weight = conv_layout.merged(matrix, tuple(kernel), channels)
    geometry = Geometry(tuple(kernel), tuple(stride), tuple(padding), tuple(dilation))
    finish = bias, residual, scale, out_type, activation, residual_scale, out_scale
    result = reference.convolve(x, weight, geometry, groups, *finish)
    return _empty(result, out_features, out_type).copy_(result)


def _convolve_fake(
    x: Tensor,
    packed: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    scale: Tensor | None,
    out_features: int,
    kernel: list[int],
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
    element: int,
    out_type: int,
    *_: float,
) -> Tensor:
    geometry = Geometry(tuple(kernel), tuple(stride), tuple(padding), tuple(dilation))
    height, width = geometry.out(x.shape[1], x.shape[2])
    return _empty(x, out_features, out_type, x.shape[0] * height * width)


def _linear_fake(
    x: Tensor,
    packed: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    scale: Tensor | None,
    out_features: int,
    in_features: int,
    element: int,
    out_type: int,
    *_: float,
) -> Tensor:
    return _empty(x, out_features, out_type)


def _empty(x: Tensor, out_features: int, out_type: int, tokens: int | None = None) -> Tensor:
    dtype = DTYPES[out_type]
    tokens = x.shape[0] if tokens is None else tokens
    rows = x.new_empty(tokens, pitch(out_features, dtype), dtype=dtype)
    return rows[:, :out_features]


def _pack_cuda(weight: Tensor, sparse: bool) -> Tensor:
    packed = _pack_fake(weight, sparse)
    if weight.stride(1) != 1:
        weight = weight.contiguous()
    bad = torch.full((), -1, dtype=torch.int64, device=weight.device)
    torch.ops.sparse24.pack_raw.default(weight, packed, bad, sparse)
    layout.refuse_values(weight, int(bad))
    return packed


def _pack_fake(weight: Tensor, sparse: bool) -> Tensor:
    layout.refuse_form(weight)
    shape = layout.packed_shape(*weight.shape, weight.dtype, sparse)
    return weight.new_empty(shape, dtype=torch.uint8)


def _unpack(packed: Tensor, rows: int, columns: int, element: int, sparse: bool) -> Tensor:
    return layout.unpack(packed, rows, columns, DTYPES[element], sparse)


def _unpack_fake(packed: Tensor, rows: int, columns: int, element: int, sparse: bool) -> Tensor:
    layout.refuse_packed(packed, rows, columns, DTYPES[element], sparse)
    return packed.new_empty(rows, columns, dtype=DTYPES[element])


_library.impl("linear", _linear, "CPU")
_library.impl("linear_reference", _linear, "CompositeExplicitAutograd")
_library.impl("convolve", _convolve, "CPU")
_library.impl("convolve_reference", _convolve, "CompositeExplicitAutograd")
_library.impl("pack", layout.pack, "CPU")
_library.impl("pack", _pack_cuda, "CUDA")
_library.impl("unpack", _unpack, "CPU")
torch.library.register_fake("sparse24::linear", _linear_fake, lib=_library)
torch.library.register_fake("sparse24::linear_reference", _linear_fake, lib=_library)
torch.library.register_fake("sparse24::convolve", _convolve_fake, lib=_library)
torch.library.register_fake("sparse24::convolve_reference", _convolve_fake, lib=_library)
torch.library.register_fake("sparse24::pack", _pack_fake, lib=_library)
torch.library.register_fake("sparse24::unpack", _unpack_fake, lib=_library)

linear = torch.ops.sparse24.linear.default
linear_reference = torch.ops.sparse24.linear_reference.default
convolve = torch.ops.sparse24.convolve.default
convolve_reference = torch.ops.sparse24.convolve_reference.default
pack = torch.ops.sparse24.pack.default
unpack = torch.ops.sparse24.unpack.default
