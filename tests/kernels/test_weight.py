"""SparseWeight: what it holds, and its way through state dicts, files and devices."""

import pytest
import torch

import sparse24
from sparse24 import draw
from sparse24.seam import ELEMENTS


@pytest.mark.parametrize("dtype", ELEMENTS, ids=str)
def test_a_weight_holds_its_packed_copy_and_gives_the_dense_back(dtype) -> None:
    dense = draw.weight_2to4(70, 132, dtype, seed=1, holes=0.2)
    packed = sparse24.pack(dense)
    assert (packed.shape, packed.dtype, packed.device) == (dense.shape, dtype, dense.device)
    assert torch.equal(packed.unpack().double(), dense.double())
    tensors = [value for value in vars(packed).values() if isinstance(value, torch.Tensor)]
    assert [tensor.dtype for tensor in tensors] == [torch.uint8]
    # values are half of the dense bytes; metadata an eighth of 16-bit values, a quarter of 8-bit
    padded = 128 * (192 if dtype.itemsize == 2 else 256) * dtype.itemsize
    assert packed.nbytes == padded / 2 * (1.125 if dtype.itemsize == 2 else 1.25)


@pytest.mark.parametrize("dtype", ELEMENTS, ids=str)
@pytest.mark.parametrize("sparse", [True, False], ids=["sparse", "dense"])
def test_a_weight_survives_safetensors(dtype, sparse, tmp_path) -> None:
    weight = sparse24.pack(draw.weight_2to4(5, 12, dtype, seed=2), sparse)
    weight.save(tmp_path / "weight.safetensors")
    back = sparse24.SparseWeight.load(tmp_path / "weight.safetensors")
    assert torch.equal(back.packed, weight.packed)
    assert (back.shape, back.dtype, back.sparse) == (weight.shape, dtype, sparse)


def test_another_version_of_the_layout_is_refused() -> None:
    state = sparse24.pack(draw.weight_2to4(5, 12, torch.float16, seed=3)).state_dict()
    state["header"][0] += 1
    with pytest.raises(sparse24.PackError, match="not of layout version 1; pack the weight again"):
        sparse24.SparseWeight.from_state_dict(state)


def test_missing_entries_and_other_sizes_are_refused() -> None:
    state = sparse24.pack(draw.weight_2to4(5, 12, torch.float16, seed=4)).state_dict()
    with pytest.raises(sparse24.PackError, match=r"and 'header', not \['packed'\]"):
        sparse24.SparseWeight.from_state_dict({"packed": state["packed"]})
    state["header"][1] = 500
    with pytest.raises(sparse24.PackError, match=r"no packed torch.float16 weight \[500, 12\]"):
        sparse24.SparseWeight.from_state_dict(state)


def test_a_weight_on_its_device_is_itself() -> None:
    weight = sparse24.pack(draw.weight_2to4(5, 12, torch.float16, seed=5))
    assert weight.to("cpu") is weight
    assert weight.to("meta").device == torch.device("meta")


def test_the_text_of_a_weight_says_shape_type_place_and_size() -> None:
    weight = sparse24.pack(draw.weight_2to4(1024, 1024, torch.float16, seed=6))
    # 2 MiB of halves: 1 MiB of values and an eighth of metadata, 1.125
    assert repr(weight) == "SparseWeight(1024x1024 float16, 2:4, cpu, 1.1 MiB of 2.0)"


def test_what_is_no_tensor_is_not_packed() -> None:
    with pytest.raises(sparse24.PackError, match="list; give a torch.Tensor"):
        sparse24.pack([[1.0, 0, 0, 0]])
