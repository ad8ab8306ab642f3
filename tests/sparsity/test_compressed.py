import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from workbench.sparsity import (
    Masks,
    SparsityError,
    layout_of,
    load_compressed,
    nm,
    prune,
    save_compressed,
)
from workbench.sparsity.compressed import FORMAT, compress, decompress


def zoo() -> nn.ModuleDict:
    torch.manual_seed(0)
    return nn.ModuleDict(
        {
            "stem": nn.Conv2d(3, 8, 3),
            "conv": nn.Conv2d(8, 6, 3),
            "linear": nn.Linear(12, 5),
            "up": nn.ConvTranspose2d(8, 6, 2, groups=2),
            "gates": nn.LSTM(8, 4),
            "norm": nn.BatchNorm2d(8),
        }
    )


def read_entries(path) -> tuple[dict, dict[str, tuple[str, int]]]:
    """The header's metadata, and (dtype, bytes) of every entry, read without safetensors."""
    content = path.read_bytes()
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    metadata = header.pop("__metadata__")
    sizes = {
        name: (entry["dtype"], entry["data_offsets"][1] - entry["data_offsets"][0])
        for name, entry in header.items()
    }
    assert len(content) == 8 + size + sum(count for _, count in sizes.values())
    return metadata, sizes


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_a_whole_network_comes_back_bit_by_bit_with_its_masks(dtype, tmp_path):
    model = zoo().to(dtype)
    masks = prune(model, rule="c4+")
    path = tmp_path / "model.safetensors"
    save_compressed(model.state_dict(), masks, path)
    tensors, found = load_compressed(path)
    assert found.digest() == masks.digest()
    assert (found.pattern, found.rule) == (masks.pattern, masks.rule)
    assert found.layout("up.weight") == layout_of(model["up"])
    assert set(tensors) == set(model.state_dict())
    for name, value in model.state_dict().items():
        assert tensors[name].dtype == value.dtype
        assert torch.equal(tensors[name], value), name
    again = zoo().to(dtype)
    again.load_state_dict(tensors)
    found.verify(again)


@pytest.mark.parametrize(
    ("dtype", "share"), [(torch.float16, 8), (torch.bfloat16, 8), (torch.int8, 4)]
)
def test_metadata_is_an_eighth_of_16_bit_values_and_a_quarter_of_8_bit_ones(dtype, share, tmp_path):
    weight = torch.arange(-2048, 2048).remainder(127).sub(63).view(64, 64)
    mask = nm(weight.float(), 2, 4)
    path = tmp_path / "weight"
    save_compressed({"w": (weight * mask).to(dtype)}, Masks({"w": mask}, {}, "c4"), path)
    _, sizes = read_entries(path)
    values, indices = sizes["w.values"][1], sizes["w.indices"][1]
    assert values == 64 * 64 // 2 * dtype.itemsize
    assert indices * share == values  # slide: 2 bits per kept value, 12.5 % and 25 %
    assert len(sizes) == 2


@given(seed=st.integers(0, 2**31), out=st.integers(1, 5), groups=st.integers(1, 3))
def test_any_two_of_four_weight_survives_compression(seed, out, groups):
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randint(-2, 3, (out, 4 * groups, 3), generator=generator).float()
    mask = nm(weight, 2, 4)
    layout = layout_of(nn.Linear(1, 1))
    values, indices = compress(weight * mask, mask, layout)
    found, kept = decompress(values, indices, list(weight.shape), layout)
    assert torch.equal(found, weight * mask) and torch.equal(kept, mask)


def test_nibbles_hold_the_positions_of_the_kept_values_in_the_documented_order():
    weight = torch.tensor([[0.0, 5, 0, 6, 7, 8, 0, 0]])
    values, indices = compress(weight, weight != 0, layout_of(nn.Linear(1, 1)))
    assert values.tolist() == [[5, 6, 7, 8]]
    # group 0 keeps 1 and 3: 1 | 3 << 2 = 13; group 1 keeps 0 and 1: 0 | 1 << 2 = 4
    assert indices.tolist() == [13 | 4 << 4]


def test_zeros_that_quantization_made_inside_the_mask_stay_kept_positions(tmp_path):
    mask = torch.tensor([[True, False, True, False]])
    integers = torch.tensor([[0, 0, 5, 0]], dtype=torch.int8)
    save_compressed({"w": integers}, Masks({"w": mask}, {}, "c4"), tmp_path / "w")
    tensors, masks = load_compressed(tmp_path / "w")
    assert torch.equal(tensors["w"], integers) and torch.equal(masks["w"], mask)


def test_weights_that_are_not_two_of_four_are_refused_by_layer_and_group(tmp_path):
    model = zoo()
    masks = prune(model)
    broken = {name: value.clone() for name, value in model.state_dict().items()}
    outside = (~masks["conv.weight"]).nonzero()[-1].tolist()
    broken["conv.weight"][tuple(outside)] = 3.0
    with pytest.raises(SparsityError) as caught:
        save_compressed(broken, masks, tmp_path / "file")
    told = str(caught.value)
    assert told.startswith("conv.weight: 1 weights outside the mask are not zero, the first 3.0 at")
    assert f"index {outside} (group {outside[1] // 4} of input channels)" in told
    assert not (tmp_path / "file").exists()
    dense = Masks({"w": torch.tensor([[True] * 4, [True, True, True, False]])}, {}, "c4")
    with pytest.raises(SparsityError, match=r"mask of w: 2 of 2 groups .*\[0, 0\]: \[True"):
        save_compressed({"w": torch.zeros(2, 4)}, dense, tmp_path / "file")
    with pytest.raises(SparsityError, match="unknown weight in the masks.*gone"):
        save_compressed({}, Masks({"gone": dense["w"]}, {}, "c4"), tmp_path / "file")


def test_altered_foreign_and_truncated_files_are_refused(tmp_path):
    model = zoo()
    masks = prune(model)
    path = tmp_path / "model"
    save_compressed(model.state_dict(), masks, path)
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    with pytest.raises(SparsityError, match="not a whole safetensors file"):
        load_compressed(path)
    masks.save(path)
    with pytest.raises(SparsityError, match="only files written by save_compressed"):
        load_compressed(path)
    layout = layout_of(nn.Linear(1, 1))
    with pytest.raises(SparsityError, match=r"group 0 is \[1, 1\], not rising"):
        decompress(torch.ones(1, 2), torch.tensor([5], dtype=torch.uint8), [1, 4], layout)
    with pytest.raises(SparsityError, match="2 values and 2 bytes"):
        decompress(torch.ones(1, 2), torch.zeros(2, dtype=torch.uint8), [1, 4], layout)


def test_the_header_names_a_versioned_format(tmp_path):
    model = nn.Linear(8, 8)
    save_compressed(model.state_dict(), prune(model), tmp_path / "f")
    metadata, _ = read_entries(tmp_path / "f")
    assert list(metadata) == [FORMAT] == ["workbench-2to4-1"]
