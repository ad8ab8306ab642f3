"""pack.cu, run by the emulator, against layout.py."""

import pytest
import torch
from torch import Tensor

from sparse24 import draw, layout
from sparse24.seam import ELEMENTS

NAMES = [str(dtype).removeprefix("torch.") for dtype in ELEMENTS]
every_type = pytest.mark.parametrize("dtype", ELEMENTS, ids=NAMES)
both_forms = pytest.mark.parametrize("sparse", [True, False], ids=["sparse", "dense"])
# one block, one group, and blocks cut off at both edges
SIZES = [(64, 128), (1, 4), (130, 300), (65, 1028)]


def bits(tensor: Tensor) -> Tensor:
    return tensor.contiguous().view(torch.uint8)


def sliced(weight: Tensor, start: int, extra: int) -> Tensor:
    """The same values as columns of a wider tensor, from column `start` on."""
    rows, columns = weight.shape
    wide = torch.full((rows, start + columns + extra), 1.0).to(weight.dtype)
    wide[:, start : start + columns] = weight
    return wide[:, start : start + columns]


@every_type
@both_forms
@pytest.mark.parametrize("size", SIZES)
def test_packs_the_bytes_of_layout(emulator, dtype, sparse, size) -> None:
    weight = draw.weight_2to4(*size, dtype, seed=1, holes=0.3)
    # -0.0 is kept in dense blocks, and 0 in sparse ones
    weight = torch.where(weight.float() == 0, -0.0, weight.float()).to(dtype)
    packed, bad = emulator.pack(weight, sparse)
    assert bad == -1
    assert torch.equal(packed, layout.pack(weight, sparse))


@every_type
@both_forms
@pytest.mark.parametrize(("start", "extra"), [(0, 16), (1, 0), (16, 3)])
def test_packs_rows_that_start_anywhere(emulator, dtype, sparse, start, extra) -> None:
    weight = draw.weight_2to4(70, 260, dtype, seed=2)
    packed, _ = emulator.pack(sliced(weight, start, extra), sparse)
    assert torch.equal(packed, layout.pack(weight, sparse))


@every_type
@both_forms
@pytest.mark.parametrize(("start", "extra"), [(0, 0), (1, 2)])
def test_unpacks_the_weight_and_touches_nothing_else(emulator, dtype, sparse, start, extra) -> None:
    weight = draw.weight_2to4(130, 300, dtype, seed=3, holes=0.2)
    weight = (weight.float() + 0.0).to(dtype)  # no -0.0, which packing loses
    wide = torch.full((132, start + 300 + extra), 1.0).to(dtype)
    untouched = bits(wide).clone()
    out = wide[1:131, start : start + 300]
    emulator.unpack(layout.pack(weight, sparse), out, sparse)
    assert torch.equal(bits(out), bits(weight))
    out.copy_(torch.ones(130, 300).to(dtype))
    assert torch.equal(bits(wide), untouched)


@every_type
def test_names_the_lowest_group_with_three_non_zeros(emulator, dtype) -> None:
    weight = draw.weight_2to4(200, 320, dtype, seed=4)
    for row, group in ((199, 3), (77, 79), (77, 41), (130, 0)):  # 80 groups a row
        weight[row, 4 * group + 1 : 4 * group + 4] = 1
    assert emulator.pack(weight, True)[1] == 77 * 80 + 41
    assert emulator.pack(weight, False)[1] == -1  # dense blocks hold any finite values


@every_type
def test_all_groups_bad_gives_the_first(emulator, dtype) -> None:
    weight = torch.ones(64, 128).to(dtype)
    assert emulator.pack(weight, True)[1] == 0


@both_forms
@pytest.mark.parametrize(
    ("dtype", "value"),
    [
        (torch.float16, float("inf")),
        (torch.float16, float("nan")),
        (torch.bfloat16, float("-inf")),
        (torch.bfloat16, float("nan")),
        (torch.float8_e4m3fn, float("nan")),
    ],
)
@pytest.mark.parametrize("column", range(4))
def test_names_the_group_of_a_value_that_is_not_finite(
    emulator, sparse, dtype, value, column
) -> None:
    weight = draw.weight_2to4(70, 132, dtype, seed=5)
    weight[69, 128:132] = 0
    weight[69, 128 + column] = value
    assert emulator.pack(weight, sparse)[1] == 69 * 33 + 32
    assert layout.bad_group(weight, sparse) == 69 * 33 + 32


def test_the_largest_finite_values_are_not_bad(emulator) -> None:
    for dtype in (torch.float16, torch.bfloat16, torch.float8_e4m3fn):
        weight = torch.zeros(64, 128).to(dtype)
        weight[3, 5], weight[3, 6] = torch.finfo(dtype).max, torch.finfo(dtype).min
        packed, bad = emulator.pack(weight, True)
        assert bad == -1
        assert torch.equal(packed, layout.pack(weight))


@every_type
@both_forms
def test_layout_packs_contiguous_bytes(dtype, sparse) -> None:
    packed = layout.pack(draw.weight_2to4(130, 300, dtype, seed=6), sparse)
    assert packed.is_contiguous()  # its pointer is what a kernel gets
