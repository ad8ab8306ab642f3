"""The packed weight against an oracle that follows csrc/layout.h byte by byte, and torch's own."""

import struct

import pytest
import torch
from torch import Tensor
from torch.sparse._semi_structured_conversions import (
    _calculate_meta_reordering_scatter_offsets,
    sparse_semi_structured_from_dense_cutlass,
)

from sparse24 import layout
from sparse24.draw import weight_2to4
from sparse24.seam import ELEMENTS

NAMES = [str(dtype).removeprefix("torch.") for dtype in ELEMENTS]
every_type = pytest.mark.parametrize("dtype", ELEMENTS, ids=NAMES)


def kept_of(group: list[bytes], zero: list[bool]) -> tuple[int, int]:
    there = [column for column in range(4) if not zero[column]]
    if len(there) == 2:
        return there[0], there[1]
    if len(there) == 1:
        return (0, 3) if there[0] == 3 else (there[0], 3)
    return 0, 1


def oracle(weight: Tensor, sparse: bool) -> dict[tuple[int, int], bytes]:
    """The block at each (k_block, row_block), written down from the words of layout.h."""
    size, (rows, columns) = weight.itemsize, weight.shape
    per_block = 128 // size
    raw = bytes(weight.contiguous().view(torch.uint8).flatten().tolist())
    numbers = weight.double().tolist()

    def element(row: int, column: int) -> tuple[bytes, bool]:
        if row >= rows or column >= columns:
            return bytes(size), True
        at = (row * columns + column) * size
        is_zero = numbers[row][column] == 0
        return (bytes(size) if is_zero and sparse else raw[at : at + size]), is_zero

    blocks = {}
    for k_block in range(-(-columns // per_block)):
        for row_block in range(-(-rows // 64)):
            values, nibbles = bytearray(64 * (64 if sparse else 128)), {}
            for row in range(64):
                cells = [
                    element(64 * row_block + row, per_block * k_block + column)
                    for column in range(per_block)
                ]
                line = b""
                for group in range(0, per_block, 4):
                    four = cells[group : group + 4]
                    if not sparse:
                        line += b"".join(value for value, _ in four)
                        continue
                    first, second = kept_of([v for v, _ in four], [zero for _, zero in four])
                    line += four[first][0] + four[second][0]
                    nibbles[row, group // 4] = second << 2 | first
                for chunk in range(len(line) // 16):
                    at = chunk ^ (row >> 1 & 3) if sparse else chunk ^ (row & 7)
                    place = row * len(line) + 16 * at
                    values[place : place + 16] = line[16 * chunk : 16 * chunk + 16]
            words = metadata_words(nibbles, size) if sparse else []
            blocks[k_block, row_block] = bytes(values) + struct.pack(f"<{len(words)}I", *words)
    return blocks


def metadata_words(nibbles: dict[tuple[int, int], int], size: int) -> list[int]:
    words = []
    for thread in range(128):
        warp, g, c = thread // 32, thread % 32 // 4, thread % 4
        if size == 2:
            word = 0
            for half, row in enumerate((16 * warp + g, 16 * warp + g + 8)):
                start = (32 * (c >> 1) + 16 * (c & 1)) // 4
                for i in range(4):
                    word |= nibbles[row, start + i] << 16 * half + 4 * i
            words.append(word)
            continue
        row = 16 * warp + g + 8 * (c & 1)
        for s in range(2):
            start = (64 * s + 32 * (c >> 1)) // 4
            words.append(sum(nibbles[row, start + i] << 4 * i for i in range(8)))
    return words


@every_type
@pytest.mark.parametrize("sparse", [True, False], ids=["sparse", "dense"])
@pytest.mark.parametrize("shape", [(64, 128), (65, 132), (3, 4)], ids=str)
def test_every_byte_is_where_the_layout_says(dtype, sparse, shape) -> None:
    weight = weight_2to4(*shape, dtype, seed=1, holes=0.3)
    packed = layout.pack(weight, sparse)
    wanted = oracle(weight, sparse)
    assert set(wanted) == {(k, r) for k in range(packed.shape[0]) for r in range(packed.shape[1])}
    for (k_block, row_block), block in wanted.items():
        assert bytes(packed[k_block, row_block].tolist()) == block


@every_type
@pytest.mark.parametrize("sparse", [True, False], ids=["sparse", "dense"])
@pytest.mark.parametrize("shape", [(1, 4), (64, 64), (130, 260), (257, 12)], ids=str)
def test_unpack_is_the_exact_inverse(dtype, sparse, shape) -> None:
    weight = weight_2to4(*shape, dtype, seed=2, holes=0.3)
    back = layout.unpack(layout.pack(weight, sparse), *shape, dtype, sparse)
    assert back.dtype == dtype
    assert torch.equal(back.double(), weight.double())
    if not sparse:
        assert torch.equal(back.view(torch.uint8), weight.view(torch.uint8))


def test_padding_is_zeros_with_the_nibble_of_an_empty_group() -> None:
    packed = layout.pack(weight_2to4(1, 4, torch.float16, seed=3))
    values, metadata = packed[0, 0, : layout.VALUE_BYTES], packed[0, 0, layout.VALUE_BYTES :]
    assert values[4:].count_nonzero() == 0
    assert metadata[1:].unique().tolist() == [0x44]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float8_e4m3fn])
def test_minus_zero_counts_as_zero(dtype) -> None:
    group = torch.tensor([[-0.0, 1.0, -0.0, 2.0]]).to(dtype)
    back = layout.unpack(layout.pack(group), 1, 4, dtype)
    assert torch.equal(back.view(torch.uint8), group.abs().view(torch.uint8))


@pytest.mark.parametrize("dtype", ELEMENTS[:3], ids=NAMES[:3])
def test_values_and_metadata_are_those_of_torch(dtype) -> None:
    # one block; torch's converter wants exactly two non-zeros in each group
    weight = weight_2to4(64, 128 // dtype.itemsize, dtype, seed=4)
    values, meta = sparse_semi_structured_from_dense_cutlass(weight)
    block = layout.pack(weight)[0, 0]
    rows = [block[64 * row : 64 * row + 64].view(4, 16) for row in range(64)]
    lines = [rows[row][[c ^ (row >> 1 & 3) for c in range(4)]].flatten() for row in range(64)]
    assert torch.equal(torch.stack(lines), values.view(torch.uint8))
    # its metadata lies in the order of cutlass; undone, a word is one row's, lowest nibble first
    columns = meta.shape[1]
    order = _calculate_meta_reordering_scatter_offsets(64, columns, meta.dtype, "cpu")
    words = meta.flatten()[order].view(64, columns).tolist()
    each = 2 * meta.itemsize
    nibbles = {
        (row, each * column + i): words[row][column] >> 4 * i & 15
        for row in range(64)
        for column in range(columns)
        for i in range(each)
    }
    told = metadata_words(nibbles, dtype.itemsize)
    assert bytes(block[layout.VALUE_BYTES :].tolist()) == struct.pack(f"<{len(told)}I", *told)


@every_type
def test_a_group_with_three_non_zeros_is_refused_by_row_and_group(dtype) -> None:
    weight = weight_2to4(70, 32, dtype, seed=5).float()
    weight[66, 20:24] = torch.tensor([1.0, 0.0, 2.0, 3.0])
    weight[69, 0:4] = 1.0
    with pytest.raises(layout.PackError, match=r"row 66, group 5 \(columns 20 to 23\) has 3"):
        layout.pack(weight.to(dtype))
    layout.pack(weight.to(dtype), sparse=False)


@pytest.mark.parametrize(
    ("dtype", "value"),
    [
        (torch.float16, "nan"),
        (torch.float16, "inf"),
        (torch.bfloat16, "nan"),
        (torch.bfloat16, "-inf"),
        (torch.float8_e4m3fn, "nan"),  # it has no infinities
    ],
)
@pytest.mark.parametrize("sparse", [True, False], ids=["sparse", "dense"])
def test_values_that_are_not_finite_are_refused(dtype, value, sparse) -> None:
    weight = torch.zeros(3, 8)
    weight[2, 5] = float(value)
    with pytest.raises(layout.PackError, match=r"row 2, group 1 .* only finite"):
        layout.pack(weight.to(dtype), sparse)


@pytest.mark.parametrize(
    ("weight", "message"),
    [
        (torch.zeros(4, 4), "torch.float32; allowed are torch.float16"),
        (torch.zeros(4, 6, dtype=torch.float16), r"\[4, 6\]; allowed is \[out, in\]"),
        (torch.zeros(4, dtype=torch.float16), r"\[4\]; allowed"),
        (torch.zeros(0, 4, dtype=torch.float16), r"\[0, 4\]; allowed"),
    ],
    ids=["float32", "columns", "vector", "empty"],
)
def test_other_forms_are_refused(weight, message) -> None:
    with pytest.raises(layout.PackError, match=message):
        layout.pack(weight)


def test_bytes_of_another_shape_are_no_packed_weight() -> None:
    packed = layout.pack(weight_2to4(64, 64, torch.float16, seed=6))
    with pytest.raises(layout.PackError, match=r"no packed torch.float16 weight \[65, 64\]"):
        layout.unpack(packed, 65, 64, torch.float16)


def test_a_weight_with_strides_packs_as_its_copy() -> None:
    weight = weight_2to4(64, 64, torch.float16, seed=7)
    strided = weight.T.contiguous().T
    assert not strided.is_contiguous()
    assert torch.equal(layout.pack(strided), layout.pack(weight))
