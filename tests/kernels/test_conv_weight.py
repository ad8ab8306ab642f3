"""A convolution's packed weight: exact both ways, 2:4 in super-groups, refusals with the reason."""

import pytest
import torch

import sparse24
from sparse24 import conv_layout, draw, layout
from sparse24.seam import ELEMENTS

HALF, BYTE = torch.float16, torch.int8


@pytest.mark.parametrize("dtype", ELEMENTS, ids=str)
@pytest.mark.parametrize(
    ("shape", "groups"),
    [
        ((12, 8, 3, 3), 1),
        ((70, 132, 1, 1), 1),
        ((16, 12, 2, 5), 1),
        ((128, 16, 3, 3), 8),
        ((256, 128, 3, 1), 2),
        ((24, 8, 1, 5), 4),
    ],
    ids=str,
)
def test_a_weight_comes_back_as_it_was_packed(dtype, shape, groups, tmp_path) -> None:
    dense = draw.kernel_2to4(shape, dtype, seed=1, holes=0.2)
    w = sparse24.pack_conv2d(dense, groups)
    assert (w.shape, w.dtype, w.groups) == (dense.shape, dtype, groups)
    assert torch.equal(w.unpack().double(), dense.double())
    w.save(tmp_path / "weight.safetensors")
    back = sparse24.SparseConvWeight.load(tmp_path / "weight.safetensors")
    assert torch.equal(back.packed, w.packed)
    assert (back.shape, back.groups, back.form) == (w.shape, groups, w.form)


@pytest.mark.parametrize("sparse", [True, False], ids=["sparse", "dense"])
def test_columns_are_row_column_channel_in_whole_blocks(sparse) -> None:
    dense = draw.kernel_2to4((4, 8, 2, 3), HALF, seed=2, dense=not sparse)
    w = sparse24.pack_conv2d(dense, sparse=sparse)
    matrix = w.matrix.unpack()
    assert matrix.shape == (4, 2 * 3 * 64)  # a block of 16-bit types is 64 columns
    for r in range(2):
        for s in range(3):
            place = matrix[:, 64 * (3 * r + s) :][:, :64]
            assert torch.equal(place[:, :8], dense[:, :, r, s])
            assert not place[:, 8:].any()


def test_a_1x1_weight_has_the_bytes_of_a_product() -> None:
    dense = draw.kernel_2to4((70, 132, 1, 1), HALF, seed=3)
    w = sparse24.pack_conv2d(dense)
    assert torch.equal(w.packed, sparse24.pack(dense.flatten(1)).packed)
    # and those of a convolution, whose columns are padded, so that a stride can use it too
    padded = torch.nn.functional.pad(dense.flatten(1), (0, 192 - 132))
    assert torch.equal(w.packed, sparse24.pack(padded).packed)


@pytest.mark.parametrize(
    ("dtype", "features", "channels", "groups", "merged"),
    [
        (HALF, 512, 16, 32, 4),  # ResNeXt-101 32x16d: a block is 64 channels
        (HALF, 1024, 32, 32, 2),
        (HALF, 2048, 64, 32, 1),
        (HALF, 4096, 128, 32, 1),
        (BYTE, 512, 16, 32, 8),  # a block is 128 channels
        (BYTE, 2048, 64, 32, 2),
        (HALF, 128, 64, 4, 2),  # 32 features are half a block of rows: two groups make one
        (HALF, 40, 8, 4, 4),  # all of it is within one block
        (HALF, 40, 24, 1, 1),  # one group may be of any size
    ],
)
def test_narrow_groups_are_merged_to_blocks(dtype, features, channels, groups, merged) -> None:
    assert conv_layout.merge(features, channels, groups, dtype) == merged


def test_a_super_group_is_block_diagonal() -> None:
    dense = draw.kernel_2to4((128, 16, 1, 1), HALF, seed=4)
    w = sparse24.pack_conv2d(dense, groups=8)
    assert (w.super_groups, w.form.channels) == (2, 64)
    matrix = w.matrix.unpack()
    for feature in range(128):
        own = 16 * (feature // 16 % 4)  # four groups of 16 channels in a super-group
        assert torch.equal(matrix[feature, own : own + 16], dense[feature, :, 0, 0])
        assert matrix[feature].count_nonzero() == dense[feature].count_nonzero()
    assert layout.bad_group(matrix, sparse=True) == -1


@pytest.mark.parametrize(
    ("shape", "groups", "message"),
    [
        ((8, 6, 3, 3), 1, "6 channels; 2:4 needs a multiple of 4: keep it dense"),
        ((64, 3, 7, 7), 1, "3 channels; 2:4 needs"),
        ((64, 1, 3, 3), 64, "depthwise"),
        ((64, 24, 3, 3), 2, "24 channels; allowed are divisors and multiples of 64"),
        ((64, 96, 3, 3), 2, "96 channels; allowed are divisors"),
        ((6, 16, 3, 3), 6, "no number of its 6 groups of 16 channels and 1 features"),
        ((8, 8, 3, 3), 3, "groups is 3; allowed are divisors of the weight's 8 features"),
        ((8, 8), 1, r"\[8, 8\] .* allowed is a strided \[out, in / groups, height, width\]"),
        ((8, 0, 3, 3), 1, r"\[8, 0, 3, 3\]"),
    ],
    ids=str,
)
def test_what_cannot_be_packed_is_refused_with_the_reason(shape, groups, message) -> None:
    with pytest.raises(sparse24.PackError, match=message):
        sparse24.pack_conv2d(torch.zeros(shape).half(), groups)


def test_a_type_or_a_value_is_refused_by_feature_place_and_channels() -> None:
    with pytest.raises(sparse24.PackError, match="float32; allowed are torch.float16"):
        sparse24.pack_conv2d(torch.zeros(8, 8, 3, 3))
    dense = draw.kernel_2to4((8, 8, 2, 3), HALF, seed=5)
    dense[5, 4:7, 1, 2] = 1
    where = "feature 5, row 1 and column 2 of the kernel, channels 4 to 7 has [34] non-zeros"
    with pytest.raises(sparse24.PackError, match=where):
        sparse24.pack_conv2d(dense)
    dense[5, 4, 1, 2] = float("nan")
    with pytest.raises(sparse24.PackError, match=r"channels 4 to 7 holds \[nan"):
        sparse24.pack_conv2d(dense)


def test_a_products_file_is_no_convolutions() -> None:
    product = sparse24.pack(draw.weight_2to4(5, 12, HALF, seed=6))
    with pytest.raises(sparse24.PackError, match="not of layout version 1"):
        sparse24.SparseConvWeight.from_state_dict(product.state_dict())
