"""The random cases hold on the CPU, and catch what they are there to catch."""

from dataclasses import replace

import pytest
import torch

from sparse24 import check, conv_layout, draw, ops
from sparse24.cases import filled, operands, poisoned
from sparse24.conv_cases import conv_case_of
from sparse24.seam import COST_MODEL, ELEMENTS, OUTPUTS, SM80

SEEDS = range(60)


def test_the_reference_passes_every_case() -> None:
    rows, failed = check.sweep(SEEDS, "cpu")
    assert failed == []
    assert sum(row["cases"] for row in rows) == len(SEEDS)


def test_the_drawn_cases_cover_every_pair_of_types() -> None:
    drawn = {(c.dtype, c.out) for c in map(check.case_of, range(300))}
    assert drawn == {(dtype, out) for dtype in ELEMENTS for out in OUTPUTS[dtype]}


@pytest.mark.parametrize("plan", [COST_MODEL, SM80], ids=["reference", "gathered"])
def test_the_reference_passes_every_convolution(plan) -> None:
    rows, failed = check.sweep(SEEDS, "cpu", [plan], conv_case_of)
    assert failed == []
    assert sum(row["cases"] for row in rows) == len(SEEDS)


def test_the_drawn_convolutions_cover_what_the_networks_have() -> None:
    drawn = [conv_case_of(seed) for seed in range(400)]
    assert {(c.dtype, c.out) for c in drawn} == {(d, out) for d in ELEMENTS for out in OUTPUTS[d]}
    kernels = {size for c in drawn for size in c.geometry.kernel}
    assert kernels == set(range(1, 8))
    supers = {c.groups // conv_layout.merge(c.rows, c.channels // c.groups, c.groups, c.dtype)
              for c in drawn if c.groups > 1}  # fmt: skip
    assert supers >= {1, 2, 3}
    assert {c.channels % 8 for c in drawn} >= {0, 4}
    assert any(c.height != c.width for c in drawn)


@pytest.mark.parametrize("fault", ["one element", "the last column", "a shifted pixel"])
def test_a_wrong_convolution_is_caught(monkeypatch, fault) -> None:
    right = ops.convolve_reference

    def wrong(x, packed, *rest):
        if fault == "a shifted pixel":
            return right(x.roll(1, 2), packed, *rest)
        found = right(x, packed, *rest)
        spot = (-1, -1) if fault == "one element" else (slice(None), -1)
        found[spot] = float("nan") if found.is_floating_point() else 113
        return found

    monkeypatch.setattr(ops, "convolve_reference", wrong)
    _, failed = check.sweep(range(40), "cpu", drawing=conv_case_of)
    assert len(failed) > 30


@pytest.mark.parametrize("fault", ["one element", "the last column", "a coarser type", "no bias"])
def test_a_wrong_kernel_is_caught(monkeypatch, fault) -> None:
    right = ops.linear

    def wrong(x, packed, bias, *rest):
        if fault == "no bias":
            return right(x, packed, None, *rest)
        found = right(x, packed, bias, *rest)
        if fault == "one element":
            found[-1, -1] += found.abs().max() * 0.05 + 0.01 if found.is_floating_point() else 1
        elif fault == "the last column":
            found[:, -1] = float("nan") if found.is_floating_point() else 113
        elif found.is_floating_point():
            found.copy_(found.to(torch.float8_e5m2))
        return found

    monkeypatch.setattr(ops, "linear", wrong)
    _, failed = check.sweep(range(40), "cpu")
    # a third of the cases have no bias; the float8 copy leaves int8 and int32 alone
    assert len(failed) > 15


@pytest.mark.parametrize(("bits", "holds"), [(13, True), (10, False)])
@pytest.mark.parametrize("columns", [8, 64, 956])
def test_the_bound_of_e4m3_is_that_of_sums_of_13_bits(bits, holds, columns) -> None:
    case = next(c for c in map(check.case_of, range(999)) if c.dtype == torch.float8_e4m3fn)
    bare = {"bias": None, "residual": False, "scale": False, "activation": None, "gain": 1.0}
    # 956: where a bound without the root of the columns failed, of ours and of cuBLAS' sums
    case = replace(
        case, tokens=128, rows=96, columns=columns, out=torch.float32, sparse=True, **bare
    )
    given = operands(case, "cpu")
    exact = case.sums(given["x"], given["weight"], torch.float64)
    excess = (truncated(given["x"], given["weight"], bits) - exact).abs()
    assert bool((excess <= check.bound(case, given, exact)).all()) == holds


def truncated(x: torch.Tensor, weight: torch.Tensor, bits: int) -> torch.Tensor:
    """x @ weight^T as Hopper's e4m3 instructions sum: 64 columns of 2:4 aligned to the largest."""
    total = torch.zeros(1, len(x), len(weight), dtype=torch.float64)
    for a, b in zip(x.double().T.split(64), weight.double().T.split(64), strict=True):
        terms = torch.cat([total, a[:, :, None] * b[:, None, :]])
        largest = terms.abs().amax(0).clamp_min(1e-300)
        step = torch.exp2(largest.log2().floor() - bits)
        total = ((terms / step).trunc() * step).sum(0, keepdim=True)
    return total[0]


@pytest.mark.parametrize("dtype", [torch.float16, torch.float8_e4m3fn], ids=str)
def test_operands_are_filled_to_what_tensor_cores_take_without_another_product(dtype) -> None:
    x, weight = draw.operand(8, 568, dtype, 1), draw.operand(676, 568, dtype, 2)
    wide, tall = filled(poisoned(x, 16), 128), filled(weight, 64)
    # 568 columns and 676 rows to multiples of 64, 8 tokens to one of 128
    assert (wide.shape, tall.shape) == ((128, 576), (704, 576))
    assert wide.dtype == tall.dtype == dtype
    found, wanted = wide.double() @ tall.double().T, x.double() @ weight.double().T
    torch.testing.assert_close(found[:8, :676], wanted)
    assert not found[8:].any()
    assert not found[:, 676:].any()
