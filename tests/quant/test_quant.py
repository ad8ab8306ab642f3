"""INT8: hand-computed integers, zeros kept, ranges by calibration, named errors."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from workbench import quant
from workbench.quant.observe import Max, Percentile, QuantError
from workbench.sparsity import prune

MAX = SimpleNamespace(calibrator="max", percentile=99.99, keep_fp16=())


def test_weights_become_the_nearest_integers_per_output_channel() -> None:
    layer = nn.Sequential(nn.Linear(4, 2, bias=False))
    layer[0].weight.data = torch.tensor([[1.27, -0.635, 0.005, 0.0], [0.0, 0.0, 0.0, 12.7]])
    result = quant.quantize(layer, {"0": 1.0})
    # scales 0.01 and 0.1; 63.5 and 0.5 round half to even: 64 and 0
    assert result.weights["0"].tolist() == [[127, -64, 0, 0], [0, 0, 0, 127]]
    assert result.scales["0"].tolist() == pytest.approx([0.01, 0.1])


def test_an_all_zero_channel_stays_zero() -> None:
    layer = nn.Sequential(nn.Linear(4, 2, bias=False))
    layer[0].weight.data.zero_()
    assert not quant.quantize(layer, {"0": 1.0}).weights["0"].any()


def test_zeros_of_the_mask_are_zeros_of_the_integers() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(32, 4))
    masks = prune(model)
    with quant.observing(model, MAX) as observed:
        model(torch.randn(4, 8, 4, 4))
    result = quant.quantize(model, quant.ranges(observed))
    counted = quant.zeros(result, masks)
    assert counted["pruned_weights"] == (8 * 8 * 9 + 32 * 4) // 2
    assert counted["pruned_not_zero"] == 0
    assert counted["layers_2to4"] == counted["layers_masked"] == 2


def test_the_simulation_is_close_and_leaves_the_model_as_it_was() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 8))
    x = torch.randn(128, 64)
    exact, weight = model(x), model[0].weight.clone()
    with quant.observing(model, MAX) as observed:
        model(x)
    result = quant.quantize(model, quant.ranges(observed))
    with quant.simulated(model, result):
        rounded = model(x)
    assert 0 < ((rounded - exact).norm() / exact.norm()).item() < 0.03
    assert torch.equal(model[0].weight, weight)
    assert torch.equal(model(x), exact)


def test_a_percentile_ignores_rare_outliers_and_the_maximum_does_not() -> None:
    values = torch.linspace(0, 1, 100_000)
    seen = Percentile(99.9), Max()
    for observer in seen:
        observer.see(values)
        observer.see(torch.tensor([50.0]))
    assert seen[0].limit() == pytest.approx(0.999, abs=0.002)
    assert seen[1].limit() == 50


def test_broken_and_absent_activations_are_refused() -> None:
    with pytest.raises(QuantError, match="NaN or infinite"):
        Percentile(99.9).see(torch.tensor([float("nan")]))
    with pytest.raises(QuantError, match="no activation was seen, or only zeros, at 0, 1"):
        quant.ranges({"0": Max(), "1": Percentile(99.9)})
    unknown = SimpleNamespace(calibrator="max", percentile=99.9, keep_fp16=("head",))
    with (
        pytest.raises(QuantError, match="names \\['head'\\]"),
        quant.observing(nn.Sequential(nn.Linear(4, 4)), unknown),
    ):
        pass


def test_a_layer_tied_to_an_embedding_is_left_alone() -> None:
    model = nn.ModuleDict({"table": nn.Embedding(8, 4), "out": nn.Linear(4, 8, bias=False)})
    model["out"].weight = model["table"].weight
    assert quant.layers(model) == {}
