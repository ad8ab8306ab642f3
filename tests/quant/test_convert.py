"""Integers of weights: hand-computed values, scales along the output channels, zeros kept."""

import pytest
import torch
from torch import nn

from workbench import quant
from workbench.quant.layers import spread, to_integers, weight_scale
from workbench.sparsity import prune

# module -> its output channels: 12 rows of a gate matrix are 4 gates of an LSTM's 3 units
CHANNELS = {
    "linear": (nn.Linear(8, 6), 6),
    "grouped": (nn.Conv2d(8, 6, 3, groups=2), 6),
    "transposed": (nn.ConvTranspose2d(8, 6, 3), 6),
    "grouped transposed": (nn.ConvTranspose1d(8, 6, 3, groups=2), 6),
    "lstm": (nn.LSTM(8, 3), 12),
    "gru cell": (nn.GRUCell(8, 3), 9),
}


def test_weights_become_the_nearest_integers_per_output_channel() -> None:
    layer = nn.Sequential(nn.Linear(4, 2, bias=False))
    layer[0].weight.data = torch.tensor([[1.27, -0.635, 0.005, 0.0], [0.0, 0.0, 0.0, 12.7]])
    result = quant.quantize(layer, {"0": 1.0})
    # scales 0.01 and 0.1; 63.5 and 0.5 round half to even: 64 and 0
    assert result.weights["0.weight"].tolist() == [[127, -64, 0, 0], [0, 0, 0, 127]]
    assert result.scales["0.weight"].tolist() == pytest.approx([0.01, 0.1])


@pytest.mark.parametrize("kind", CHANNELS)
def test_every_output_channel_has_a_scale_and_uses_its_range(kind: str) -> None:
    module, channels = CHANNELS[kind]
    names = quant.layers(nn.Sequential(module))
    assert list(names) == ["0"]
    leaf = next(name for name, _ in module.named_parameters() if name.startswith("weight"))
    weight = getattr(module, leaf)
    scale = weight_scale(module, weight)
    integers = to_integers(module, weight, scale)
    assert scale.shape == (channels,) and integers.shape == weight.shape
    assert (integers * spread(module, scale, weight) - weight).abs().max() <= scale.max() / 2
    for channel in range(channels):
        alone = torch.zeros(channels)
        alone[channel] = 1
        inside = integers[spread(module, alone, weight) == 1]
        assert inside.abs().max() == 127 and len(inside) == weight.numel() // channels


def test_a_grouped_transposed_channel_is_of_one_group() -> None:
    module = nn.ConvTranspose1d(4, 6, 1, groups=2, bias=False)  # [in, out / groups, 1]
    module.weight.data = torch.arange(1.0, 13.0).view(4, 3, 1)
    # channels 0-2 see inputs 0 and 1, channels 3-5 inputs 2 and 3: the larger of each is below
    assert (127 * weight_scale(module, module.weight)).tolist() == [4, 5, 6, 10, 11, 12]


def test_an_all_zero_channel_stays_zero() -> None:
    layer = nn.Sequential(nn.Linear(4, 2, bias=False))
    layer[0].weight.data.zero_()
    assert not quant.quantize(layer, {"0": 1.0}).weights["0.weight"].any()


def test_zeros_of_the_mask_are_zeros_of_the_integers() -> None:
    torch.manual_seed(0)
    model = nn.ModuleDict(
        {"conv": nn.Conv2d(8, 8, 3), "up": nn.ConvTranspose2d(8, 4, 2), "rnn": nn.LSTM(8, 8)}
    )
    masks = prune(model, rule="c4+")
    counted = quant.zeros(quant.quantize(model, dict.fromkeys(model, 1.0)), masks)
    # two of four: 8 x 8 x 9, 8 x 4 x 4, and two gate matrices of 32 x 8
    assert counted["pruned_weights"] == (576 + 128 + 512) // 2
    assert counted["pruned_not_zero"] == 0
    assert counted["layers_2to4"] == counted["layers_masked"] == 4


def test_zeros_by_rounding_are_told_from_those_of_the_mask() -> None:
    model = nn.Sequential(nn.Linear(4, 1, bias=False))
    model[0].weight.data = torch.tensor([[12.7, 0.04, 0.0, 0.0]])  # scale 0.1: 127 and 0
    masks = prune(model)
    counted = quant.zeros(quant.quantize(model, {"0": 1.0}), masks)
    assert (counted["pruned_weights"], counted["zeros_from_rounding"]) == (2, 1)


def test_layers_without_an_int8_form_are_left_alone() -> None:
    model = nn.ModuleDict({"table": nn.Embedding(8, 4), "out": nn.Linear(4, 8, bias=False)})
    model["out"].weight = model["table"].weight
    model["attention"] = nn.MultiheadAttention(4, 2)
    model["projected"] = nn.LSTM(4, 4, proj_size=2)
    assert quant.layers(model) == {}
