"""Random cases of the ops against float64: `python -m sparse24.check --cases 2000`.

Everything around x, the residual and (through the allocator) the result is poisoned with NaN, so a
kernel that reads or leaves what it should not shows. Each case asks four things: every element is
within the bound of its own sum; the error as a whole is at most 1.2 times that of the dense
library with the same epilogue in float32; a second run and a run of some of the rows alone are
equal bit by bit; packing on the device gives the bytes of layout.py.
"""

import argparse
import random
import sys
from collections import defaultdict
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import pad

from . import build, draw, layout, ops, reference
from .seam import ACTIVATIONS, COST_MODEL, ELEMENTS, OUTPUTS, SM80, TYPES, Plan, pitch

RATIO = 1.2  # of our error to the dense library's


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


def case(seed: int) -> Case:
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


@dataclass(frozen=True)
class Found:
    """What came of a case: squared relative errors, and what is wrong, if anything."""

    error: float
    dense_error: float
    problems: list[str]


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


def dense_sums(x: Tensor, weight: Tensor) -> Tensor:
    """x @ weight^T in float32 by the dense library of the device."""
    if not x.is_cuda or x.dtype == torch.int8:
        return reference.sums(x, weight)
    if x.dtype != torch.float8_e4m3fn:
        return torch.mm(x, weight.T, out_dtype=torch.float32)
    tokens, rows = len(x), len(weight)  # its dense product takes multiples of 16 alone
    x, weight = (
        pad(t.view(torch.int8), (0, -t.shape[1] % 16, 0, -t.shape[0] % 16)).view(t.dtype)
        for t in (x.contiguous(), weight)
    )
    one = torch.ones((), device=x.device)
    wide = torch._scaled_mm(x, weight.T, one, one, out_dtype=torch.float32, use_fast_accum=True)
    return wide[:tokens, :rows]


def bound(case: Case, given: dict, exact: Tensor) -> Tensor:
    """How far each element may lie from the exact result."""
    x, weight, residual = given["x"].double(), given["weight"].double(), given["residual"]
    size = reference.epilogue(
        x.abs() @ weight.abs().T,
        None if given["bias"] is None else given["bias"].abs(),
        None if residual is None else residual.double().abs(),
        given["scale"],
        0,
        given["residual_scale"],
        given["out_scale"],
    )
    # an add of float32 errs by 2^-23 of the whole, one for each 16 columns; those of e4m3 on
    # Hopper keep 13 bits; GELU is steeper than 1, by 1.13
    sums = 2.0**-12 if case.dtype == torch.float8_e4m3fn else 2.0**-22 * (case.columns / 16 + 8)
    rounding = (
        torch.finfo(case.out).eps * 0.505 * exact.abs() + torch.finfo(case.out).smallest_normal
        if case.out.is_floating_point
        else torch.full_like(exact, 0.5)
    )
    return rounding + 1.2 * sums * size


def run(case: Case, device: str) -> Found:
    """What comes of a case on a device."""
    given = operands(case, device)
    weight, problems = given["weight"], []
    packed = ops.pack(weight, case.sparse)
    if not torch.equal(packed.cpu(), layout.pack(weight.cpu(), case.sparse)):
        problems.append("packing on the device differs from layout.py")
    back = ops.unpack(packed, case.rows, case.columns, TYPES[case.dtype], case.sparse)
    if not torch.equal(back.double(), weight.double()):
        problems.append("unpacking is not the inverse")
    found = product(case, given, packed)
    if not torch.equal(_bits(found), _bits(product(case, given, packed))):
        problems.append("two runs differ")
    some = slice(case.tokens // 3, case.tokens // 3 + max(1, case.tokens // 2))
    if found.is_cuda and not torch.equal(
        _bits(found[some]), _bits(product(case, given, packed, some))
    ):
        problems.append("rows alone differ from the rows of the batch")
    errors = _errors(case, given, found, problems)
    return Found(*errors, problems)


def _errors(case: Case, given: dict, found: Tensor, problems: list[str]) -> tuple[float, float]:
    finish = ("bias", "residual", "scale", "residual_scale", "out_scale")
    extras = {name: given[name] for name in finish}
    extras["activation"] = ACTIVATIONS[case.activation]
    x, weight = given["x"], given["weight"]
    if case.out == torch.int32:
        if not torch.equal(found.double(), x.double() @ weight.double().T):
            problems.append("int32 sums are not exact")
        return 0.0, 0.0
    exact = reference.epilogue(reference.sums(x, weight, torch.float64), **extras)
    if case.out == torch.int8:
        exact = exact.clamp(-127, 127)
    excess = (found.double() - exact).abs() / bound(case, given, exact)
    worst = float(excess.max())
    if not worst <= 1:  # NaN too
        at = divmod(int(excess.nan_to_num(nan=float("inf")).argmax()), case.rows)
        problems.append(f"element {at} is {worst:.3g} times its bound off")
    dense = reference.stored(reference.epilogue(dense_sums(x, weight), **extras), case.out)
    size = exact.square().sum().clamp_min(1e-30)
    ours, theirs = ((t.double() - exact).square().sum() / size for t in (found, dense))
    if found.numel() >= 4096 and ours > RATIO**2 * theirs:
        problems.append(f"error is {float(ours / theirs) ** 0.5:.3g} times the dense library's")
    return float(ours), float(theirs)


def _bits(values: Tensor) -> Tensor:
    return values.contiguous().view(torch.uint8)


def sweep(
    seeds: range, device: str, plans: list[int] | None = None
) -> tuple[list[dict], list[str]]:
    """A row per pair of types, and a line per case that failed; `plans` are taken in turn."""
    cells, failed = defaultdict(list), []
    for seed in seeds:
        drawn = case(seed)
        if plans:
            drawn = replace(drawn, plan=plans[seed % len(plans)])
        found = run(drawn, device)
        cells[drawn.dtype, drawn.out].append(found)
        if found.problems:
            failed.append(f"{'; '.join(found.problems)}: {drawn}")
    rows = []
    for (dtype, out), results in sorted(cells.items(), key=str):
        ours, theirs = (
            (sum(getattr(r, name) for r in results) / len(results)) ** 0.5
            for name in ("error", "dense_error")
        )
        rows.append(
            {
                "dtype": str(dtype).removeprefix("torch."),
                "out": str(out).removeprefix("torch."),
                "cases": len(results),
                "failed": sum(bool(r.problems) for r in results),
                "error": ours,
                "dense_error": theirs,
            }
        )
    return rows, failed


def main() -> None:
    """Print the table of a sweep; exit with 1 if a case failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=2000)
    parser.add_argument("--first", type=int, default=0, help="seed of the first case")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--sm80", action="store_true", help="the Ampere kernel, on any card")
    parser.add_argument(
        "--plan", action="append", default=[], help="tile,cluster_m,cluster_n,raster; repeatable"
    )
    given = parser.parse_args()
    if torch.device(given.device).type == "cuda":
        build.load()
    plans = [Plan(*map(int, text.split(","))).number() for text in given.plan]
    plans += [SM80] if given.sm80 else []
    seeds = range(given.first, given.first + given.cases)
    rows, failed = sweep(seeds, given.device, plans)
    print(f"{'dtype':<15}{'out':<10}{'cases':>6}{'failed':>7}{'error':>11}{'dense':>11}")
    for row in rows:
        print(
            f"{row['dtype']:<15}{row['out']:<10}{row['cases']:>6}{row['failed']:>7}"
            f"{row['error']:>11.2e}{row['dense_error']:>11.2e}"
        )
    for line in failed[:20]:
        print(line)
    print(f"{len(failed)} of {len(seeds)} cases failed on {given.device}")
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
