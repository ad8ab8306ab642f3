"""What can compute a product: our kernels by plan, cuSPARSELt by algorithm, the dense library."""

from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import linear as dense_linear

from . import bench, ops, reference
from .seam import COST_MODEL, DTYPES
from .weight import SparseWeight


class Choice(NamedTuple):
    """A backend and its number: a plan of ours, an algorithm of cuSPARSELt, none of dense."""

    backend: str  # sparse24, cusparselt or dense
    number: int = COST_MODEL


OURS = Choice("sparse24")

CUSPARSELT_OUTPUTS = {
    torch.float16: (torch.float16,),
    torch.bfloat16: (torch.bfloat16,),
    torch.int8: (torch.float16, torch.bfloat16, torch.int32),
    torch.float8_e4m3fn: (torch.float16, torch.bfloat16, torch.float32),
}


class Rung(NamedTuple):
    """What runs for up to `most` tokens, and the trials at `tokens` that say so."""

    most: int
    choice: Choice
    tokens: int
    trials: tuple


# What follows the sums, as the op takes it: bias, residual, scale, the numbers of the type of the
# result and of the activation, residual_scale, out_scale. A plain tuple, as each call makes one.
Finish = tuple[Tensor | None, Tensor | None, Tensor | None, int, int, float, float]


def signature(finish: Finish) -> tuple[int, int, bool, bool, bool]:
    """What of an epilogue the time depends on."""
    bias, residual, scale, out_type, activation, *_ = finish
    return out_type, activation, bias is not None, residual is not None, scale is not None


class Unsupported(ValueError):
    """A product that a backend does not compute."""


def copy_for(backend: str, weight: Tensor) -> Tensor | None:
    """The copy of a dense 2:4 weight that a backend multiplies with; ours needs none."""
    if backend == "dense":
        return weight if weight.dim() == 2 else weight.contiguous(memory_format=torch.channels_last)
    if backend == "cusparselt":
        refuse_cusparselt(weight)
        return torch._cslt_compress(weight)
    return None


def run(choice: Choice, x: Tensor, w: SparseWeight, copy: Tensor | None, finish: Finish) -> Tensor:
    """The result [tokens, out] by one backend; Unsupported where it has none for such operands."""
    if choice.backend == "dense":
        return _dense(x, copy, finish)
    if choice.backend == "cusparselt":
        return _cusparselt(x, copy, finish, choice.number)
    return ours(x, w, finish, choice.number)


def ours(x: Tensor, w: SparseWeight, finish: Finish, plan: int = COST_MODEL) -> Tensor:
    """The result by our kernel, or by the reference on a device that has none."""
    product = ops.linear_reference if w.backend == "reference" else ops.linear
    bias, residual, scale, *numbers = finish
    sizes = w.out_features, w.in_features, w.element
    return product(x, w.packed, bias, residual, scale, *sizes, *numbers, w.sparse, plan)


def refuse_cusparselt(weight: Tensor, out: torch.dtype | None = None) -> None:
    """Raise Unsupported for what cuSPARSELt does not take, as torch gives sizes and types."""
    dtype, (rows, columns) = weight.dtype, weight.shape
    least = 16 if dtype.itemsize == 2 else 32
    if rows % least or columns % least:
        raise Unsupported(
            f"cuSPARSELt takes {dtype} weights in multiples of {least}, not [{rows}, {columns}]"
        )
    if out not in (None, *CUSPARSELT_OUTPUTS[dtype]):
        raise Unsupported(f"cuSPARSELt gives no {out} of {dtype}, as torch calls it")
    if not (weight.is_cuda and bench.has_cusparselt()):
        raise Unsupported(f"there is no cuSPARSELt in this torch for {weight.device.type}")


def _dense(x: Tensor, weight: Tensor, finish: Finish) -> Tensor:
    bias, residual, scale, out_type, *numbers = finish
    out = DTYPES[out_type]
    if x.dtype == torch.int8:
        total = _padded(x, 8, 32, lambda t: torch._int_mm(t, weight.T))
        if out == torch.int32:
            return total
        total = total.float() if scale is None else total * scale  # one kernel either way
        return finished(total, (bias, residual, None, out_type, *numbers))
    if x.dtype == torch.float8_e4m3fn:
        if x.shape[1] % 16 or weight.shape[0] % 16:
            raise Unsupported(f"torch._scaled_mm takes multiples of 16, not {list(weight.shape)}")
        one, wide = _one(x.device), out if scale is None else torch.float32
        return finished(torch._scaled_mm(x, weight.T, one, one, out_dtype=wide), finish)
    if out == x.dtype and scale is None:
        within = None if bias is None else bias.to(out)
        total = dense_linear(x, weight, within)
        return finished(total, (None, residual, None, out_type, *numbers))
    return finished(torch.mm(x, weight.T, out_dtype=torch.float32), finish)


@cache
def _one(device: torch.device) -> Tensor:
    return torch.ones((), device=device)


def _cusparselt(x: Tensor, copy: Tensor, finish: Finish, algorithm: int) -> Tensor:
    bias, residual, scale, out_type, *numbers = finish
    out = DTYPES[out_type]
    within = bias if bias is not None and bias.dtype == out == x.dtype else None
    alpha = scale if x.dtype == torch.int8 and out != torch.int32 else None
    named = None if out == x.dtype else out  # torch refuses even the same, of 16 bits

    def product(t: Tensor) -> Tensor:
        extras = {"bias": within, "alpha": alpha, "out_dtype": named, "alg_id": algorithm}
        # it takes the rows as lying close, whatever the strides say
        return torch._cslt_sparse_mm(copy, t.contiguous().T, transpose_result=True, **extras)

    step = 8 if x.dtype.itemsize == 2 else 16
    total = _padded(x, step, step, product)
    if out == torch.int32:
        return total
    rest = (None if within is not None else bias, residual, None if alpha is not None else scale)
    return finished(total, (*rest, out_type, *numbers))


def _padded(x: Tensor, step: int, least: int, product: Callable[[Tensor], Tensor]) -> Tensor:
    """The product of x with rows added to a multiple, and the result without them."""
    tokens, columns = x.shape
    rows = max(-(-tokens // step) * step, least)
    if rows == tokens:
        return product(x)
    more = x.new_zeros(rows, columns)
    more[:tokens] = x
    return product(more)[:tokens]


def finished(total: Tensor, finish: Finish) -> Tensor:
    """The epilogue as one who calls the library would write it."""
    bias, residual, scale, out_type, *numbers = finish
    if (bias, residual, scale, *numbers) != (None, None, None, 0, 1.0, 1.0):
        total = reference.epilogue(total, bias, residual, scale, *numbers)
    return reference.stored(total, DTYPES[out_type])
