"""Random cases of the ops against float64: `python -m sparse24.check --cases 2000`.

`--convolutions` draws these instead: kernels of 1 to 7, strides, paddings, dilations and groups.

Everything around x, the residual and (through the allocator) the result is poisoned with NaN, so a
kernel that reads or leaves what it should not shows. Each case asks four things: every element is
within the bound of its own sum; the error as a whole is at most 3 times that of the dense library
with the same epilogue in float32; a second run, a run of some of the rows alone and one of the
public function, of a tensor with other strides, are equal bit by bit; packing on the device gives
the bytes of layout.py. All cases of a pair of types together err at most 1.2 times as the library
does: in a single one it may have split the sum, which errs less, where ours never are split.
"""

import argparse
import sys
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from . import build, reference
from .cases import Case, case_of, operands
from .conv_cases import conv_case_of
from .seam import ACTIVATIONS, COST_MODEL, SM80, Plan

# of our error to the dense library's: in a case, and in all of a pair of types, if they are enough
MOST_RATIO, RATIO, ENOUGH = 3.0, 1.2, 30


@dataclass(frozen=True)
class Found:
    """What came of a case: squared relative errors, and what is wrong, if anything."""

    error: float
    dense_error: float
    problems: list[str]


def bound(case: Case, given: dict, exact: Tensor) -> Tensor:
    """How far each element may lie from the exact result."""
    x, weight, residual = given["x"].double(), given["weight"].double(), given["residual"]
    size = reference.epilogue(
        case.sums(x.abs(), weight.abs(), torch.float64),
        None if given["bias"] is None else given["bias"].abs(),
        None if residual is None else residual.double().abs(),
        given["scale"],
        0,
        given["residual_scale"],
        given["out_scale"],
    )
    # an add of float32 errs by 2^-23 of the whole, one for each 16 columns; GELU is steeper than
    # 1, by 1.13
    eight = case.dtype == torch.float8_e4m3fn
    sums = _thirteen_bits(case) if eight else 2.0**-22 * (case.columns / 16 + 8)
    rounding = (
        torch.finfo(case.out).eps * 0.505 * exact.abs() + torch.finfo(case.out).smallest_normal
        if case.out.is_floating_point
        else torch.full_like(exact, 0.5)
    )
    return rounding + 1.2 * sums * size


def _thirteen_bits(case: Case) -> float:
    """How far Hopper's sums of e4m3, cuBLAS' too, may be off, as a share of their magnitudes' sum.

    An instruction aligns 32 products and the sum so far to the largest and drops what lies below
    13 bits of it. What products lose is 0.2 x 2^-13 in the mean square (simulated), taken as 3.
    The sum loses up to 2^-13 of itself every 32 terms, always toward zero. It walks as their
    root: at five sigma it is 7.8 / sqrt(terms) of the magnitudes, 2/3 of that on the way, and a
    cut takes a third of 2^-13 on average; terms / 32 of these are sqrt(terms) / 18.
    """
    terms = case.columns / (2 if case.sparse else 1)
    return 2.0**-13 * (3 + terms**0.5 / 16)


def run(case: Case, device: str) -> Found:
    """What comes of a case on a device."""
    given = operands(case, device)
    weight, problems = given["weight"], []
    packed = case.pack(weight)
    if not torch.equal(packed.cpu(), case.pack(weight.cpu())):
        problems.append("packing on the device differs from layout.py")
    if not torch.equal(case.weight(packed).unpack().double(), weight.double()):
        problems.append("unpacking is not the inverse")
    found = case.product(given, packed)
    if not torch.equal(_bits(found), _bits(case.product(given, packed))):
        problems.append("two runs differ")
    first = case.images // 3
    some = slice(first, first + max(1, case.images // 2))
    rows = slice(*(at * case.tokens // case.images for at in (some.start, some.stop)))
    if found.is_cuda and not torch.equal(
        _bits(found[rows]), _bits(case.product(given, packed, some))
    ):
        problems.append("rows alone differ from the rows of the batch")
    is_public = case.out != torch.int8 and case.gain == 1 and case.plan == COST_MODEL
    if is_public and not torch.equal(_bits(case.public(given, packed)), _bits(found)):
        problems.append("the public function of a tensor with other strides differs")
    errors = _errors(case, given, found, problems)
    return Found(*errors, problems)


def _errors(case: Case, given: dict, found: Tensor, problems: list[str]) -> tuple[float, float]:
    finish = ("bias", "residual", "scale", "residual_scale", "out_scale")
    extras = {name: given[name] for name in finish}
    extras["activation"] = ACTIVATIONS[case.activation]
    x, weight = given["x"], given["weight"]
    if case.out == torch.int32:
        if not torch.equal(found.double(), case.sums(x, weight, torch.float64)):
            problems.append("int32 sums are not exact")
        return 0.0, 0.0
    exact = reference.epilogue(case.sums(x, weight, torch.float64), **extras)
    if case.out == torch.int8:
        exact = exact.clamp(-127, 127)
    excess = (found.double() - exact).abs() / bound(case, given, exact)
    worst = float(excess.max())
    if not worst <= 1:  # NaN too
        at = divmod(int(excess.nan_to_num(nan=float("inf")).argmax()), case.rows)
        problems.append(f"element {at} is {worst:.3g} times its bound off")
    dense = reference.stored(reference.epilogue(case.dense_sums(x, weight), **extras), case.out)
    size = exact.square().sum().clamp_min(1e-30)
    ours, theirs = ((t.double() - exact).square().sum() / size for t in (found, dense))
    rounding = (torch.finfo(case.out).eps / 2) ** 2 if case.out.is_floating_point else 0.0
    if found.numel() >= 4096 and ours > max(MOST_RATIO**2 * theirs, rounding):
        problems.append(f"error is {float(ours / theirs) ** 0.5:.3g} times the dense library's")
    return float(ours), float(theirs)


def _bits(values: Tensor) -> Tensor:
    return values.contiguous().view(torch.uint8)


def sweep(
    seeds: range,
    device: str,
    plans: list[int] | None = None,
    drawing: Callable[[int], Case] = case_of,
) -> tuple[list[dict], list[str]]:
    """A row per pair of types, and a line per case that failed; `plans` are taken in turn."""
    cells, failed = defaultdict(list), []
    for seed in seeds:
        drawn = drawing(seed)
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
        types = [str(each).removeprefix("torch.") for each in (dtype, out)]
        if ours > RATIO * theirs:
            failed.append(
                f"{' to '.join(types)}: {ours / theirs:.3g} times the dense library's error"
            )
        rows.append(
            {
                "dtype": types[0],
                "out": types[1],
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
    parser.add_argument("--convolutions", action="store_true", help="instead of plain products")
    parser.add_argument(
        "--plan", action="append", default=[], help="tile,cluster_m,cluster_n,raster; repeatable"
    )
    given = parser.parse_args()
    if torch.device(given.device).type == "cuda":
        build.load()
    plans = [Plan(*map(int, text.split(","))).number() for text in given.plan]
    plans += [SM80] if given.sm80 else []
    seeds = range(given.first, given.first + given.cases)
    drawing = conv_case_of if given.convolutions else case_of
    rows, failed = sweep(seeds, given.device, plans, drawing)
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
