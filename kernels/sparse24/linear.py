"""linear: x times a packed weight, with everything behind it in the same kernel."""

from collections.abc import Sequence

import torch
from torch import Tensor

from . import candidates, reference
from .aligned import aligned
from .candidates import Finish, Rung, signature
from .gradients import DIFFERENTIABLE, Linear
from .scales import Scales
from .seam import ACTIVATIONS, OUTPUTS, TYPES
from .weight import PackedWeight, SparseWeight

BIASES = (torch.float16, torch.bfloat16, torch.float32)


class LinearError(ValueError):
    """Arguments that `linear` cannot take."""


def linear(
    x: Tensor,
    w: SparseWeight,
    bias: Tensor | None = None,
    activation: str | None = None,
    residual: Tensor | None = None,
    out_dtype: torch.dtype | None = None,
    scales: Scales | None = None,
) -> Tensor:
    """activation(scales * (x @ w^T) + bias + residual), [..., out] for x [..., in].

    x has the type of the weight and any leading dimensions and strides; where columns are
    contiguous and rows a multiple of 16 bytes apart, it is not copied. activation: None, relu,
    gelu or gelu_tanh. The result is of x's type, of bfloat16 for float8, of int32 (bare sums) for
    int8 without scales, of int8 with `scales.out` (rounded half to even, clipped to [-127, 127]),
    of float16 for int8 otherwise; or of out_dtype. Its rows lie a multiple of 16 bytes apart.
    Differentiable in x, bias and residual for float16 and bfloat16; `weight_gradient` is for the
    weight. Raises LinearError; `why` says which backend runs.
    """
    if type(w) is not SparseWeight:
        raise LinearError(f"w is {type(w).__name__}; give a SparseWeight: sparse24.pack(weight)")
    x, residual, out_dtype = cast(x, w, residual, out_dtype)
    flat, finish = prepared(x, w, bias, activation, residual, out_dtype, scales)
    result = product(flat, w, finish)
    return result if x.dim() == 2 else result.view(*x.shape[:-1], w.out_features)


def product(flat: Tensor, w: SparseWeight, finish: Finish) -> Tensor:
    """The result [tokens, out] of what `prepared` gives, by what is fastest or for gradients."""
    if wants_gradient(flat, w, finish):
        return _differentiable(flat, w, finish)
    if w.tuned and (rung := chosen(w, signature(finish), flat.shape[0])):
        copy = w.copies.get(rung.choice.backend)
        return candidates.run(rung.choice, flat, w, copy, finish)
    return candidates.ours(flat, w, finish)


def chosen(w: PackedWeight, kind: tuple, count: int) -> Rung | None:
    """What was measured fastest for a kind of call and so many tokens or images, or None."""
    for rung in w.tuned.get(kind, ()):
        if count <= rung.most:
            return rung
    return None


def prepared(
    x: Tensor,
    w: SparseWeight,
    bias: Tensor | None,
    activation: str | None,
    residual: Tensor | None,
    out_dtype: torch.dtype | None,
    scales: Scales | None,
) -> tuple[Tensor, Finish]:
    """x and the epilogue as the op takes them; LinearError for what it does not."""
    if (
        x.dtype is not w.dtype
        or x.device != w.device
        or x.dim() == 0
        or x.shape[-1] != w.in_features
    ):
        raise _refused("x", x, f"[..., {w.in_features}]", (w.dtype,), w)
    finish = finish_of(w, x.shape[:-1], bias, activation, residual, out_dtype, scales)
    return aligned(x, w.in_features), finish


def finish_of(
    w: SparseWeight,
    leading: Sequence[int],
    bias: Tensor | None,
    activation: str | None,
    residual: Tensor | None,
    out_dtype: torch.dtype | None,
    scales: Scales | None,
) -> Finish:
    """The epilogue of a result [*leading, out] as the op takes it; LinearError if it cannot."""
    out = out_dtype or default_out(w.dtype, scales)
    if activation not in ACTIVATIONS or out not in OUTPUTS[w.dtype]:
        raise _refused_choice(w, activation, out)
    scale, residual_scale, out_scale = None, 1.0, 1.0
    if scales is not None:
        scale = scales.of_sums(w.out_features, w.device)
        residual_scale = 1.0 if scales.residual is None else scales.residual
        out_scale = 1.0 if scales.out is None else 1 / scales.out
    if w.dtype is torch.int8 or scales is not None:
        _refuse_scales(out, scales, bias is residual is activation is None)
    if bias is not None:
        if bias.dtype not in BIASES or bias.shape != (w.out_features,) or bias.device != w.device:
            raise _refused("bias", bias, f"[{w.out_features}]", BIASES, w)
        bias = bias.contiguous()
    if residual is not None:
        wanted = (*leading, w.out_features)
        if residual.dtype is not out or residual.shape != wanted or residual.device != w.device:
            raise _refused("residual", residual, str(list(wanted)), (out,), w)
        residual = aligned(residual, w.out_features)
    return bias, residual, scale, TYPES[out], ACTIVATIONS[activation], residual_scale, out_scale


def default_out(dtype: torch.dtype, scales: Scales | None) -> torch.dtype:
    """The type of the result where none is asked for."""
    if dtype is not torch.int8:
        return OUTPUTS[dtype][0]
    if scales is None:
        return torch.int32
    return torch.float16 if scales.out is None else torch.int8


def _refuse_scales(out: torch.dtype, scales: Scales | None, bare: bool) -> None:
    if (out is torch.int8) != (scales is not None and scales.out is not None):
        raise LinearError(
            f"the result is {out} and scales are {scales}; an int8 result takes Scales(out=step), "
            "and a step of the result an int8 one: give both or neither"
        )
    if out is torch.int32 and not (bare and scales is None):
        raise LinearError(
            "int32 results are the bare sums, without bias, activation, residual and scales; give "
            "out_dtype or scales for another result"
        )


def _differentiable(flat: Tensor, w: SparseWeight, finish: Finish) -> Tensor:
    bias, residual, scale, out_type, activation, residual_scale, _ = finish
    sizes = w.out_features, w.in_features, w.element, out_type, residual_scale
    plain = w.backend == "reference"
    result = Linear.apply(flat, w.packed, bias, residual, scale, *sizes, w.sparse, plain)
    return reference.activated(result, activation)


def wants_gradient(x: Tensor, w: PackedWeight, finish: Finish) -> bool:
    """Whether a gradient is asked for; LinearError if the weight's type has none."""
    bias, residual, *_ = finish
    wanted = torch.is_grad_enabled() and (
        x.requires_grad
        or (bias is not None and bias.requires_grad)
        or (residual is not None and residual.requires_grad)
    )
    if wanted and w.dtype not in DIFFERENTIABLE:
        raise LinearError(f"{w.dtype} has no gradients; call it under torch.no_grad()")
    return wanted


def cast(
    x: Tensor, w: PackedWeight, residual: Tensor | None, out_dtype: torch.dtype | None
) -> tuple[Tensor, Tensor | None, torch.dtype | None]:
    """Under autocast as for a dense product: operands in the weight's type, the result in its."""
    if not torch.is_autocast_enabled(w.device_type) or w.dtype not in DIFFERENTIABLE:
        return x, residual, out_dtype
    out = out_dtype or torch.get_autocast_dtype(w.device_type)
    if x.is_floating_point():
        x = x.to(w.dtype)
    return x, None if residual is None else residual.to(out), out


def _refused(
    name: str, given: Tensor, shape: str, dtypes: tuple[torch.dtype, ...], w: SparseWeight
) -> LinearError:
    allowed = " or ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
    dtype = str(given.dtype).removeprefix("torch.")
    return LinearError(
        f"{name} is {dtype} {list(given.shape)} on {given.device}; allowed is {allowed} {shape} "
        f"on {w.device}, as the weight is {w}: convert or move it, or pack the weight anew"
    )


def _refused_choice(w: SparseWeight, activation: str | None, out: torch.dtype) -> LinearError:
    outputs = ", ".join(str(dtype) for dtype in OUTPUTS[w.dtype])
    return LinearError(
        f"activation is {activation!r} and the result {out}; allowed for {w.dtype} are "
        f"{', '.join(map(repr, ACTIVATIONS))} and {outputs}"
    )
