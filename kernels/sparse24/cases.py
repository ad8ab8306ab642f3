"""Random products: sizes that are multiples of nothing, every type and epilogue, poison around."""

import random
from dataclasses import dataclass

import torch
from torch import Tensor

from . import draw, ops, reference
from .linear import linear
from .scales import Scales
from .seam import ACTIVATIONS, COST_MODEL, ELEMENTS, OUTPUTS, TYPES, pitch
from .weight import SparseWeight


@dataclass(frozen=True)
class Case:
    """One product, drawn from its seed."""

    seed: int
    tokens: int
    rows: int
    columns: int
    dtype: torch.dtype
    out: torch.dtype
    sparse: bool
    bias: torch.dtype | None
    residual: bool
    scale: bool
    activation: str | None
    gain: float  # of the result, after the activation
    extra: int  # columns of x beyond its own, as of a slice of a wider tensor
    plan: int = COST_MODEL


def case_of(seed: int) -> Case:
    """The case of a seed: sizes that are multiples of nothing, every type and every epilogue."""
    pick = random.Random(seed)
    dtype = pick.choice(ELEMENTS)
    out = pick.choice(OUTPUTS[dtype])
    bare = out == torch.int32
    return Case(
        seed=seed,
        tokens=pick.choice([1, 2, 7, 8, 128, pick.randint(1, 300)]),
        rows=pick.choice([64, 256, pick.randint(1, 700)]),
        columns=4 * pick.choice([1, 16, 128, pick.randint(1, 500)]),
        dtype=dtype,
        out=out,
        sparse=pick.random() < 0.8,
        bias=None if bare else pick.choice([None, torch.float32, torch.float16, torch.bfloat16]),
        residual=not bare and pick.random() < 0.3,
        scale=not bare and (dtype == torch.int8 or pick.random() < 0.3),
        activation=None if bare else pick.choice(list(ACTIVATIONS)),
        gain=1.0 if bare else pick.choice([1.0, 1.0, 0.375]),
        extra=pick.choice([0, 0, 16, 48]),
    )


def poisoned(values: Tensor, extra: int = 0) -> Tensor:
    """The values as a slice of a wider and longer tensor whose other elements are poison."""
    rows, columns = values.shape
    poison = float("nan") if values.is_floating_point() else 113
    wide = pitch(columns + extra, values.dtype)
    whole = torch.full((rows + 2, wide), poison, device=values.device).to(values.dtype)
    whole[1 : rows + 1, :columns] = values
    return whole[1 : rows + 1, :columns]


def operands(case: Case, device: str) -> dict[str, Tensor | float | None]:
    """x, weight and what the epilogue takes, for a result of about unit size."""
    seed = 10 * case.seed
    weight = draw.weight_2to4(case.rows, case.columns, case.dtype, seed, device, holes=0.1)
    x = draw.operand(case.tokens, case.columns, case.dtype, seed + 2, device)
    unit = case.columns**0.5 * (127**2 / 6 if case.dtype == torch.int8 else 1)
    generator = torch.Generator(device).manual_seed(seed + 3)
    scale = torch.rand(case.rows, device=device, generator=generator) + 0.5
    bias = torch.randn(case.rows, device=device, generator=generator)
    steps = 30.0 if case.out == torch.int8 else 1.0
    residual = torch.randn(case.tokens, case.rows, device=device, generator=generator) * steps
    return {
        "x": poisoned(x, case.extra),
        "weight": weight,
        "bias": bias.to(case.bias) if case.bias else None,
        "residual": poisoned(reference.stored(residual, case.out)) if case.residual else None,
        "scale": scale / unit if case.scale else None,
        "residual_scale": 0.5 / steps if case.residual else 1.0,
        "out_scale": steps * case.gain,
    }


def product(case: Case, given: dict, packed: Tensor, rows: slice = slice(None)) -> Tensor:
    """The op's result for some of the rows, in memory that held poison before."""
    x, residual = given["x"][rows], given["residual"]
    poison = float("nan") if case.out.is_floating_point else 113
    stale = torch.full((len(x), pitch(case.rows, case.out)), poison, device=x.device).to(case.out)
    del stale  # the caching allocator gives this memory to the result
    return ops.linear(
        x,
        packed,
        given["bias"],
        None if residual is None else residual[rows],
        given["scale"],
        case.rows,
        case.columns,
        TYPES[case.dtype],
        TYPES[case.out],
        ACTIVATIONS[case.activation],
        given["residual_scale"],
        given["out_scale"],
        case.sparse,
        case.plan,
    )


def public_product(case: Case, given: dict, w: SparseWeight) -> Tensor:
    """The same by `linear`, of an x that has to be copied, in three dimensions."""
    x, start = given["x"], 1 + case.seed % 3
    odd = poisoned(torch.zeros(case.tokens, case.columns + 3, device=x.device).to(x.dtype), 1)
    odd = odd[:, start : start + case.columns].copy_(x)
    scales = None if given["scale"] is None else Scales(weight=given["scale"])
    residual = given["residual"]
    with torch.no_grad():
        return linear(
            odd.unsqueeze(1),
            w,
            given["bias"],
            case.activation,
            None if residual is None else (residual * 0.5).to(case.out).unsqueeze(1),
            case.out,
            scales,
        ).squeeze(1)
