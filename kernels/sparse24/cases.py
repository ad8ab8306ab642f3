"""Random products: sizes that are multiples of nothing, every type and epilogue, poison around."""

import random
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

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

    @property
    def images(self) -> int:
        """Of what the batch consists, for which alone the bits must be the same: here rows."""
        return self.tokens

    def drawn(self, seed: int, device: str) -> tuple[Tensor, Tensor]:
        """Weight and x, which has poison around it."""
        weight = draw.weight_2to4(self.rows, self.columns, self.dtype, seed, device, holes=0.1)
        x = draw.operand(self.tokens, self.columns, self.dtype, seed + 2, device)
        return weight, poisoned(x, self.extra)

    def weight(self, packed: Tensor) -> SparseWeight:
        """The packed bytes as a weight."""
        return SparseWeight(packed, (self.rows, self.columns), self.dtype, self.sparse)

    def pack(self, weight: Tensor) -> Tensor:
        """The bytes of a weight, packed by the device."""
        return ops.pack(weight, self.sparse)

    def sums(self, x: Tensor, weight: Tensor, precision: torch.dtype) -> Tensor:
        """The sums of the reference."""
        return reference.sums(x, weight, precision)

    def dense_sums(self, x: Tensor, weight: Tensor) -> Tensor:
        """x @ weight^T in float32 by the dense library of the device, on its tensor cores.

        The operands are filled with zeros to sizes that its tensor-core kernels take. Others it
        computes on other units, whose float32 sums err less: by 2 to 11 times, of 8 tokens or of
        columns that are no multiple of 8 on an H100; how we sum is not to be compared with that.
        """
        if not x.is_cuda or x.dtype == torch.int8:
            return reference.sums(x, weight)
        tokens, rows = len(x), len(weight)
        x, weight = filled(x, 128), filled(weight, 64)
        if x.dtype != torch.float8_e4m3fn:
            return torch.mm(x, weight.T, out_dtype=torch.float32)[:tokens, :rows]
        one = torch.ones((), device=x.device)
        formats = {"out_dtype": torch.float32, "use_fast_accum": True}
        return torch._scaled_mm(x, weight.T, one, one, **formats)[:tokens, :rows]

    def product(self, given: dict, packed: Tensor, some: slice = slice(None)) -> Tensor:
        """The op's result for some of the images, in memory that held poison before."""
        x, residual = given["x"][some], given["residual"]
        stale(self, len(x), x.device)
        sizes = self.rows, self.columns, TYPES[self.dtype], TYPES[self.out]
        bias, scale = given["bias"], given["scale"]
        numbers = ACTIVATIONS[self.activation], given["residual_scale"], given["out_scale"]
        residual = None if residual is None else residual[some]
        return ops.linear(
            x, packed, bias, residual, scale, *sizes, *numbers, self.sparse, self.plan
        )

    def public(self, given: dict, packed: Tensor) -> Tensor:
        """The same by `linear`, of an x that has to be copied, in three dimensions."""
        x, start = given["x"], 1 + self.seed % 3
        odd = poisoned(torch.zeros(len(x), self.columns + 3, device=x.device).to(x.dtype), 1)
        odd = odd[:, start : start + self.columns].copy_(x)
        scales = None if given["scale"] is None else Scales(weight=given["scale"])
        residual = given["residual"]
        if residual is not None:
            residual = (residual * 0.5).to(self.out).unsqueeze(1)
        extras = given["bias"], self.activation, residual, self.out, scales
        with torch.no_grad():
            return linear(odd.unsqueeze(1), self.weight(packed), *extras).squeeze(1)


def case_of(seed: int) -> Case:
    """The case of a seed: sizes that are multiples of nothing, every type and every epilogue."""
    pick = random.Random(seed)
    dtype = pick.choice(ELEMENTS)
    out = pick.choice(OUTPUTS[dtype])
    return Case(
        seed=seed,
        tokens=pick.choice([1, 2, 7, 8, 128, pick.randint(1, 300)]),
        rows=pick.choice([64, 256, pick.randint(1, 700)]),
        columns=4 * pick.choice([1, 16, 128, pick.randint(1, 500)]),
        dtype=dtype,
        out=out,
        **finish_of(pick, dtype, out),
    )


def finish_of(pick: random.Random, dtype: torch.dtype, out: torch.dtype) -> dict[str, Any]:
    """What a case has beside its sizes and types: pattern, epilogue, and room around x."""
    bare = out == torch.int32
    return {
        "sparse": pick.random() < 0.8,
        "bias": None if bare else pick.choice([None, torch.float32, torch.float16, torch.bfloat16]),
        "residual": not bare and pick.random() < 0.3,
        "scale": not bare and (dtype == torch.int8 or pick.random() < 0.3),
        "activation": None if bare else pick.choice(list(ACTIVATIONS)),
        "gain": 1.0 if bare else pick.choice([1.0, 1.0, 0.375]),
        "extra": pick.choice([0, 0, 16, 48]),
    }


def filled(values: Tensor, step: int) -> Tensor:
    """The values with zeros behind them, to a multiple of `step` rows and of 64 columns."""
    raw = values.contiguous()
    if values.dtype.itemsize == 1:  # not every torch pads float8
        raw = raw.view(torch.int8)
    rows, columns = values.shape
    return pad(raw, (0, -columns % 64, 0, -rows % step)).view(values.dtype)


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
    weight, x = case.drawn(seed, device)
    unit = case.columns**0.5 * (127**2 / 6 if case.dtype == torch.int8 else 1)
    generator = torch.Generator(device).manual_seed(seed + 3)
    scale = torch.rand(case.rows, device=device, generator=generator) + 0.5
    bias = torch.randn(case.rows, device=device, generator=generator)
    steps = 30.0 if case.out == torch.int8 else 1.0
    residual = torch.randn(case.tokens, case.rows, device=device, generator=generator) * steps
    return {
        "x": x,
        "weight": weight,
        "bias": bias.to(case.bias) if case.bias else None,
        "residual": poisoned(reference.stored(residual, case.out)) if case.residual else None,
        "scale": scale / unit if case.scale else None,
        "residual_scale": 0.5 / steps if case.residual else 1.0,
        "out_scale": steps * case.gain,
    }


def stale(case: Case, rows: int, device: torch.device) -> None:
    """Leave poison where the caching allocator will put a result of so many rows."""
    poison = float("nan") if case.out.is_floating_point else 113
    torch.full((rows, pitch(case.rows, case.out)), poison, device=device).to(case.out)
