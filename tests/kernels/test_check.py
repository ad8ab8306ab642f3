"""The random cases hold on the CPU, and catch what they are there to catch."""

import pytest
import torch

from sparse24 import check, ops
from sparse24.seam import ELEMENTS, OUTPUTS

SEEDS = range(60)


def test_the_reference_passes_every_case() -> None:
    rows, failed = check.sweep(SEEDS, "cpu")
    assert failed == []
    assert sum(row["cases"] for row in rows) == len(SEEDS)


def test_the_drawn_cases_cover_every_pair_of_types() -> None:
    drawn = {(c.dtype, c.out) for c in map(check.case, range(300))}
    assert drawn == {(dtype, out) for dtype in ELEMENTS for out in OUTPUTS[dtype]}


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
