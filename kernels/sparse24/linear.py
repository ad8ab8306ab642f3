"""linear: x times a packed weight, with everything behind it in the same kernel."""

import torch
from torch import Tensor
from torch.nn.functional import pad

from . import candidates, reference
from .candidates import Finish, Rung, signature
from .gradients import DIFFERENTIABLE, Linear
from .scales import Scales
from .seam import ACTIVATIONS, OUTPUTS, TYPES, pitch
from .weight import SparseWeight

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
    if torch.is_autocast_enabled(w.device_type) and w.dtype in DIFFERENTIABLE:
        x, residual, out_dtype = _cast(x, w, residual, out_dtype)
    flat, finish = prepared(x, w, bias, activation, residual, out_dtype, scales)
    if torch.is_grad_enabled() and _wants_gradient(flat, finish):
        result = _differentiable(flat, w, finish)
    elif w.tuned and (rung := chosen(w, finish, flat.shape[0])):
        copy = w.copies.get(rung.choice.backend)
        result = candidates.run(rung.choice, flat, w, copy, finish)
    else:
        result = candidates.ours(flat, w, finish)
    return result if x.dim() == 2 else result.view(*x.shape[:-1], w.out_features)


def chosen(w: SparseWeight, finish: Finish, tokens: int) -> Rung | None:
    """What was measured fastest for so many tokens; None if nothing was measured."""
    for rung in w.tuned.get(signature(finish), ()):
        if tokens <= rung.most:
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
    out = out_dtype or default_out(w.dtype, scales)
    if activation not in ACTIVATIONS or out not in OUTPUTS[w.dtype]:
        raise _refused_choice(w, activation, out)
    scale, residual_scale, out_scale = None, 1.0, 1.0
    if scales is not None:
        scale = scales.of_sums(w.out_features, w.device)
        residual_scale = scales.residual
        out_scale = 1.0 if scales.out is None else 1 / scales.out
    if w.dtype is torch.int8 or scales is not None:
        _refuse_scales(out, scales, bias is residual is activation is None)
    if bias is not None:
        if bias.dtype not in BIASES or bias.shape != (w.out_features,) or bias.device != w.device:
            raise _refused("bias", bias, f"[{w.out_features}]", BIASES, w)
        bias = bias.contiguous()
    if residual is not None:
        wanted = x.shape[:-1] + (w.out_features,)
        if residual.dtype is not out or residual.shape != wanted or residual.device != w.device:
            raise _refused("residual", residual, str(list(wanted)), (out,), w)
        residual = aligned(residual, w.out_features)
    numbers = TYPES[out], ACTIVATIONS[activation], residual_scale, out_scale
    return aligned(x, w.in_features), (bias, residual, scale, *numbers)


def default_out(dtype: torch.dtype, scales: Scales | None) -> torch.dtype:
    """The type of the result where none is asked for."""
    if dtype is not torch.int8:
        return OUTPUTS[dtype][0]
    if scales is None:
        return torch.int32
    return torch.float16 if scales.out is None else torch.int8


def aligned(x: Tensor, columns: int) -> Tensor:
    """x as [tokens, columns] with the pitch that the kernels read; a copy only where it must be."""
    flat = x if x.dim() == 2 else x.reshape(-1, columns)
    rows, step = flat.stride()
    size = flat.element_size()
    # a traced tensor does not say where it starts
    starts = torch.compiler.is_compiling() or flat.storage_offset() * size % 16 == 0
    if step == 1 and rows >= columns and rows * size % 16 == 0 and starts:
        return flat
    wide = pitch(columns, flat.dtype)
    if wide == columns:
        return flat.new_empty(flat.shape).copy_(flat)
    if size == 1:  # not every torch pads float8
        return pad(flat.view(torch.int8), (0, wide - columns)).view(flat.dtype)[:, :columns]
    return pad(flat, (0, wide - columns))[:, :columns]


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
    if w.dtype not in DIFFERENTIABLE:
        raise LinearError(f"{w.dtype} has no gradients; call linear under torch.no_grad()")
    bias, residual, scale, out_type, activation, residual_scale, _ = finish
    sizes = w.out_features, w.in_features, w.element, out_type, residual_scale
    plain = w.backend == "reference"
    result = Linear.apply(flat, w.packed, bias, residual, scale, *sizes, w.sparse, plain)
    return reference.activated(result, activation)


def _wants_gradient(flat: Tensor, finish: Finish) -> bool:
    bias, residual, *_ = finish
    return (
        flat.requires_grad
        or (bias is not None and bias.requires_grad)
        or (residual is not None and residual.requires_grad)
    )


def _cast(
    x: Tensor, w: SparseWeight, residual: Tensor | None, out_dtype: torch.dtype | None
) -> tuple[Tensor, Tensor | None, torch.dtype]:
    """As autocast does for a dense product: operands in the weight's type, the result in its."""
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
