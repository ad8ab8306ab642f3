"""What can compute a convolution: our kernels, by plan, and cuDNN through torch."""

from contextlib import AbstractContextManager

import torch
from torch import Tensor
from torch.nn import functional as F

from . import ops
from .aligned import aligned
from .candidates import Choice, Finish, Unsupported, finished
from .conv_weight import Form, SparseConvWeight
from .geometry import Geometry
from .layout import BLOCK_ROWS, block_k
from .seam import COST_MODEL, DTYPES, SM80


def run(
    choice: Choice,
    x: Tensor,
    w: SparseConvWeight,
    copy: Tensor | None,
    finish: Finish,
    geometry: Geometry,
) -> Tensor:
    """The result [pixels, out] of x [batch, height, width, channels] by one backend."""
    if choice.backend == "dense":
        return _dense(x, copy, finish, geometry, w.groups)
    return ours(x, w.packed, w.form, finish, geometry, choice.number)


def ours(
    x: Tensor,
    packed: Tensor,
    form: Form,
    finish: Finish,
    geometry: Geometry,
    plan: int = COST_MODEL,
) -> Tensor:
    """The result by our kernel, or by the reference on a device that has none.

    The Ampere kernel multiplies rows that torch gathers, as it cannot gather them itself.
    """
    if form.backend == "sm80" or plan == SM80:
        return _gathered(x, packed, form, finish, geometry)
    product = ops.convolve_reference if form.backend == "reference" else ops.convolve
    bias, residual, scale, *numbers = finish
    walk = (form.features, *map(list, geometry), form.groups, form.element)
    return product(x, packed, bias, residual, scale, *walk, *numbers, form.sparse, plan)


def windows(x: Tensor, geometry: Geometry, channels: int) -> Tensor:
    """im2col: rows [pixels, kernel height * width * channels] of x, its channels padded to that."""
    (height, width), (down, right), (top, left), (apart, beside) = geometry
    given, dtype = x.shape[3], x.dtype
    edges = (0, channels - given, left, left, top, top)
    if dtype.itemsize == 1:  # not every torch pads float8
        x = x.view(torch.int8)
    image = F.pad(x, edges).contiguous()
    out = geometry.out(x.shape[1], x.shape[2])
    batch, rows, columns, _ = image.stride()
    steps = batch, rows * down, columns * right, rows * apart, columns * beside, 1
    seen = image.as_strided((x.shape[0], *out, height, width, channels), steps)
    return seen.flatten(3).flatten(0, 2).view(dtype)


def _gathered(x: Tensor, packed: Tensor, form: Form, finish: Finish, geometry: Geometry) -> Tensor:
    """One product of the Ampere kernel for each super-group, of rows that torch gathers."""
    bias, residual, scale, *numbers = finish
    own = form.features // form.groups
    block = block_k(x.dtype)
    wide = -(-form.channels // block) * block
    columns = geometry.kernel[0] * geometry.kernel[1] * wide
    results = []
    for group in range(form.groups):
        part = slice(group * own, (group + 1) * own)
        if form.groups == 1:
            image, weight = x, packed
        else:
            image = x[..., group * form.channels : (group + 1) * form.channels]
            rows = own // BLOCK_ROWS
            weight = packed[:, group * rows : (group + 1) * rows].contiguous()
        result = ops.linear(
            windows(image, geometry, wide),
            weight,
            None if bias is None else bias[part].contiguous(),
            None if residual is None else aligned(residual[:, part], own),
            None if scale is None else scale[part].contiguous(),
            own,
            columns,
            form.element,
            *numbers,
            form.sparse,
            SM80,
        )
        results.append(result)
    return results[0] if form.groups == 1 else torch.cat(results, 1)


def _every_algorithm() -> AbstractContextManager[None]:
    """cuDNN times all of its algorithms at a shape's first call, as torch lets it."""
    repeatable = torch.backends.cudnn.deterministic
    return torch.backends.cudnn.flags(
        enabled=True, benchmark=True, benchmark_limit=0, deterministic=repeatable
    )


def _dense(x: Tensor, weight: Tensor, finish: Finish, geometry: Geometry, groups: int) -> Tensor:
    bias, residual, scale, out_type, *numbers = finish
    if x.dtype.itemsize == 1:
        raise Unsupported(f"torch has no convolution of {x.dtype} on CUDA")
    if DTYPES[out_type] != x.dtype or scale is not None:
        raise Unsupported(f"cuDNN through torch gives {x.dtype} of {x.dtype}, without scales")
    image, within = x.permute(0, 3, 1, 2), None if bias is None else bias.to(x.dtype)
    walk = geometry.stride, geometry.padding, geometry.dilation, groups
    if torch.compiler.is_compiling():
        total = F.conv2d(image, weight, within, *walk)
    else:  # the algorithm that was measured is the one that runs
        with _every_algorithm():
            total = F.conv2d(image, weight, within, *walk)
    rows = total.permute(0, 2, 3, 1).reshape(-1, weight.shape[0])
    return finished(rows, (None, residual, None, out_type, *numbers))
