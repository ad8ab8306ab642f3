"""Which backend a call takes, and why: `backend` and `why`, of `linear` and of `conv2d`."""

import inspect
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .candidates import OURS, Choice, Rung, signature
from .conv_weight import SparseConvWeight
from .convolution import conv2d, is_product
from .convolution import prepared as prepared_convolution
from .linear import chosen, linear, prepared
from .seam import Plan
from .weight import PackedWeight, SparseWeight


class Case(NamedTuple):
    """A call: what runs it if something was measured, and what the kernel is asked for."""

    w: PackedWeight
    rung: Rung | None
    size: str
    shape: tuple[int, int, int]  # tokens, in, out, of a product
    groups: int  # of a convolution, as the kernel sees them; 0 of a product
    notes: tuple[str, ...]
    tune: str


def backend(x: Tensor | Sequence[int], w: PackedWeight, *args: Any, **kwargs: Any) -> str:
    """What computes `linear` or `conv2d` of these arguments.

    sm90, sm80, cusparselt, dense or reference.
    """
    case = _case(x, w, *args, **kwargs)
    name = case.rung.choice.backend if case.rung else "sparse24"
    return w.backend if name == "sparse24" else name


def why(x: Tensor | Sequence[int], w: PackedWeight, *args: Any, **kwargs: Any) -> str:
    """The backend that these arguments take (x: a tensor or a shape), with times and copies."""
    case = _case(x, w, *args, **kwargs)
    return "\n".join([*(_measured(case) if case.rung else _unmeasured(case)), *case.notes])


def _unmeasured(case: Case) -> list[str]:
    w = case.w
    if w.backend == "reference":
        text = "reference (plain torch); the kernels are for compute capability 8.x and 9.0"
        return [f"{case.size}: {text}"]
    unmeasured = f"not measured: {case.tune} does"
    if w.backend != "sm90":
        return [f"{case.size}: {w.backend}; {unmeasured}"]
    count = torch.cuda.get_device_properties(w.device).multi_processor_count
    shape = *case.shape, w.element, w.sparse
    plan = torch.ops.sparse24.plan(*shape, count, case.groups)
    seconds = torch.ops.sparse24.predict(plan, *shape, count)
    return [
        f"{case.size}: {w.backend}, {Plan.of(plan)} of the cost model, which predicts "
        f"{seconds * 1e6:.1f} us; {unmeasured}"
    ]


def _measured(case: Case) -> list[str]:
    rung, what = case.rung, "images" if isinstance(case.w, SparseConvWeight) else "tokens"
    lines = [f"{case.size}: {_named(rung.choice, case.w)}, as measured at {rung.tokens} {what}"]
    for trial in rung.trials:
        time = trial.timing
        lines.append(
            f"  {_named(trial.choice, case.w):<60}{time.median_us:>10.2f} us"
            f"  [{time.low_us:.2f}, {time.high_us:.2f}]"
        )
    return lines


def _case(x: Tensor | Sequence[int], w: PackedWeight, *args: Any, **kwargs: Any) -> Case:
    if not isinstance(x, Tensor):
        x = torch.empty(*x, dtype=w.dtype, device=w.device)
    make = _convolution if isinstance(w, SparseConvWeight) else _product
    return make(x, w, *args, **kwargs)


def _product(x: Tensor, w: SparseWeight, *args: Any, **kwargs: Any) -> Case:
    flat, finish = prepared(**_bound(linear, x, w, *args, **kwargs))
    return _of_product(w, flat, finish, ())


def _of_product(w: SparseWeight, flat: Tensor, finish: tuple, notes: tuple[str, ...]) -> Case:
    tokens = flat.shape[0]
    dtype = str(w.dtype).removeprefix("torch.")
    size = f"{w.out_features} x {tokens} x {w.in_features} {dtype}"
    rung = chosen(w, signature(finish), tokens)
    tune = f"sparse24.tune(w, tokens=[{tokens}])"
    return Case(w, rung, size, (tokens, w.in_features, w.out_features), 0, notes, tune)


def _convolution(x: Tensor, w: SparseConvWeight, *args: Any, **kwargs: Any) -> Case:
    call = prepared_convolution(**_bound(conv2d, x, w, *args, **kwargs))
    batch, height, width, channels = call.x.shape
    notes = ()
    if x.numel() and call.x.data_ptr() != x.data_ptr():
        notes = ("  x is copied first: its memory is not channels_last of 16 bytes' multiples",)
    if is_product(w, call.geometry):
        notes = ("  a 1x1 convolution, computed as a product of its pixels", *notes)
        return _of_product(w.matrix, call.x.flatten(0, 2), call.finish, notes)
    if w.backend == "sm80":
        notes = ("  torch gathers the pixels, as the Ampere kernel cannot", *notes)
    dtype = str(w.dtype).removeprefix("torch.")
    size = f"{w.out_channels} of {channels} channels, {batch} of {height}x{width} {dtype}, "
    groups = f", groups {w.groups}" if w.groups > 1 else ""
    pixels = math.prod(call.out)
    rung = chosen(w, call.kind(), batch)
    tune = f"sparse24.tune_conv2d(w, images=[({batch}, {height}, {width})], ...)"
    shape = pixels, w.matrix.in_features, w.out_channels
    return Case(w, rung, f"{size}{call.geometry}{groups}", shape, w.super_groups, notes, tune)


def _bound(function: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
    given = inspect.signature(function).bind(*args, **kwargs)
    given.apply_defaults()
    return given.arguments


def _named(choice: Choice, w: PackedWeight) -> str:
    if choice.backend == "cusparselt":
        return f"cusparselt, algorithm {choice.number}"
    if choice.backend == "dense":
        return "dense"
    plan = "the cost model's plan" if choice == OURS else str(Plan.of(choice.number))
    return f"{w.backend}, {plan}"
