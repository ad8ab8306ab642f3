"""The file of an INT8 network: the way back, plain and compressed, and what is refused."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from workbench import quant
from workbench.quant.files import restored
from workbench.sparsity import load_compressed, prune, save_compressed


def built() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ConvTranspose2d(8, 8, 2, stride=2, groups=2),
        nn.Conv2d(8, 16, 3, groups=2),
        nn.Flatten(2),
        nn.LSTM(36, 8),
    ).eval()


@pytest.fixture
def network(calibrated: Callable):
    """A pruned and folded network of every layout, its INT8 form, its masks and inputs."""
    torch.manual_seed(0)
    model, images = built(), torch.randn(2, 3, 4, 4)
    model[1].running_mean.uniform_(-0.2, 0.2)
    masks = prune(model, rule="c4+")
    quant.fold(model, {"1": "0"})
    quantized = calibrated(model, images)
    quantized.folded["1"] = "0"
    return model, quantized, masks, images


@pytest.mark.parametrize("is_compressed", [False, True])
def test_a_fresh_model_and_a_file_answer_as_the_first(
    is_compressed: bool, network: tuple, tmp_path: Path
) -> None:
    model, quantized, masks, images = network
    tensors = quantized.tensors()
    if is_compressed:
        save_compressed(tensors, masks, tmp_path / "one.safetensors")
        tensors, kept = load_compressed(tmp_path / "one.safetensors")
        assert kept.digest() == masks.digest()
    fresh = built()
    again = restored(fresh, tensors)
    assert again.weights.keys() == quantized.weights.keys()
    assert all(torch.equal(again.weights[name], w) for name, w in quantized.weights.items())
    with torch.no_grad():
        with quant.Simulated(model, quantized):
            expected = model(images)[0]
        with quant.Simulated(fresh, again):
            assert torch.equal(fresh(images)[0], expected)
        # its fp32 form has the values of the integers
        assert (fresh(images)[0] - expected).norm() / expected.norm() < 0.1


def test_pruned_weights_take_five_eighths_of_their_bytes(network: tuple, tmp_path: Path) -> None:
    _, quantized, masks, _ = network
    save_compressed(quantized.tensors(), masks, tmp_path / "one.safetensors")
    from safetensors.torch import load_file

    entries = load_file(tmp_path / "one.safetensors")
    for name, mask in masks.items():
        # n/2 values of a byte and n/4 groups of half a byte: 5/8 n
        stored = entries[f"{name}.values"].nbytes + entries[f"{name}.indices"].nbytes
        assert stored == mask.numel() * 5 / 8, name
    assert entries["0.weight"].dtype == torch.int8  # three channels: not pruned, and whole


def test_tensors_of_another_network_are_refused(network: tuple) -> None:
    _, quantized, _, _ = network
    tensors = quantized.tensors()
    with pytest.raises(quant.QuantError, match="int8.folded is absent; give what stage quantize"):
        restored(built(), {k: v for k, v in tensors.items() if k != "int8.folded"})
    with pytest.raises(quant.QuantError, match="of another model .3.weight or its scale"):
        restored(built(), tensors | {"3.weight": torch.zeros(1)})
    with pytest.raises(quant.QuantError, match="of another model .3.bias: absent"):
        restored(built(), {k: v for k, v in tensors.items() if k != "3.bias"})
    with pytest.raises(quant.QuantError, match="of another model .more: absent"):
        restored(built(), tensors | {"more": torch.zeros(1)})
