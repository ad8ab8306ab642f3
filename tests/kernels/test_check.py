"""The random cases hold on the CPU, and catch what they are there to catch."""

import pytest
import torch

from sparse24 import check, conv_layout, ops
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
