"""One file for an INT8 network: the format by hand, the way back, and how much it saves."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from workbench import quant
from workbench.quant.export import compressed, decompressed, packed, read, restore
from workbench.sparsity import prune

# kept two of four -> their places first | second << 2 (PTX ISA, mma.sp; CUTLASS's compressor)
GROUPS = {
    (5, 6, 0, 0): (4, [5, 6]),
    (5, 0, 6, 0): (8, [5, 6]),
    (5, 0, 0, 6): (12, [5, 6]),
    (0, 5, 6, 0): (9, [5, 6]),
    (0, 5, 0, 6): (13, [5, 6]),
    (0, 0, 5, 6): (14, [5, 6]),
    (0, 0, 0, 0): (4, [0, 0]),
    (0, 0, 0, 5): (12, [0, 5]),
    (0, 0, 5, 0): (14, [5, 0]),
    (5, 0, 0, 0): (12, [5, 0]),
}


@pytest.mark.parametrize("group", GROUPS)
def test_a_group_of_four_is_two_values_and_four_bits(group: tuple) -> None:
    values, metadata = compressed(torch.tensor([group], dtype=torch.int8))
    bits, kept = GROUPS[group]
    assert (metadata.tolist(), values.tolist()) == ([bits], [kept])
    assert decompressed(values, metadata, [1, 4]).tolist() == [list(group)]


def test_groups_run_along_input_channels_and_fill_bytes_from_below() -> None:
    weight = torch.zeros(1, 8, 1, 2, dtype=torch.int8)  # [out, in, height, width]
    weight[0, [0, 1], 0, 0] = torch.tensor([1, 2], dtype=torch.int8)
    weight[0, [6, 7], 0, 0] = torch.tensor([3, 4], dtype=torch.int8)
    weight[0, [1, 3], 0, 1] = torch.tensor([5, 6], dtype=torch.int8)
    values, metadata = compressed(weight)
    assert values.tolist() == [[[[1, 2, 3, 4], [5, 6, 0, 0]]]]  # [out, height, width, in / 2]
    assert metadata.tolist() == [4 | 14 << 4, 13 | 4 << 4]
    assert torch.equal(decompressed(values, metadata, [1, 8, 1, 2]), weight)


@pytest.fixture
def network(calibrated: Callable):
    """A pruned network of every layout, calibrated."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.ConvTranspose2d(8, 8, 2, stride=2, groups=2),
        nn.Conv2d(8, 16, 3, groups=2),
        nn.Flatten(2),
        nn.Linear(36, 8),
    )
    prune(model, rule="c4+")
    images = torch.randn(2, 3, 4, 4)
    return model, calibrated(model, images), images


def test_a_file_gives_back_the_same_integers_and_the_same_outputs(
    network: tuple, tmp_path: Path
) -> None:
    model, quantized, images = network
    path = tmp_path / "int8.safetensors"
    tensors, header = packed(quantized)
    save_file(tensors, path, metadata=header)
    again = read(path)
    assert again.input_scales == pytest.approx(quantized.input_scales)
    for name, integers in quantized.weights.items():
        assert torch.equal(again.weights[name], integers), name
        assert torch.equal(again.scales[name], quantized.scales[name])
    with torch.no_grad(), quant.Simulated(model, quantized):
        expected = model(images)
    for module in (model[0], model[1], model[2], model[4]):
        module.reset_parameters()
    restore(model, again)
    with torch.no_grad(), quant.Simulated(model, again):
        assert torch.equal(model(images), expected)


def test_a_2to4_weight_takes_five_eighths_of_its_bytes(network: tuple) -> None:
    _, quantized, _ = network
    tensors, _ = packed(quantized)
    # n/2 values of a byte and n/4 groups of half a byte: 5/8 n
    assert tensors["1.weight.values"].numel() + tensors["1.weight.metadata"].numel() == 128 * 5 / 8
    assert "1.weight" not in tensors
    assert tensors["0.weight"].shape == (8, 3, 3, 3)  # three channels: not pruned, as it is


def test_damaged_and_foreign_files_are_refused(network: tuple, tmp_path: Path) -> None:
    model, quantized, _ = network
    path = tmp_path / "int8.safetensors"
    tensors, header = packed(quantized)
    save_file(tensors, path)
    with pytest.raises(quant.QuantError, match="not an INT8 network of this workbench"):
        read(path)
    tensors["1.weight.metadata"] = tensors["1.weight.metadata"] * 0
    save_file(tensors, path, metadata=header)
    with pytest.raises(quant.QuantError, match="metadata of a compressed weight is damaged"):
        read(path)
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(quant.QuantError, match="not a whole safetensors file"):
        read(path)
    with pytest.raises(quant.QuantError, match="INT8 network is of another model"):
        restore(nn.Sequential(nn.Linear(4, 4)), quantized)
