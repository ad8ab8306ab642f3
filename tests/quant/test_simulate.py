"""The simulation is the integers: bit for bit, layer by layer, on a CPU."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.rnn import pack_padded_sequence

from workbench import quant
from workbench.quant import integer
from workbench.quant.recurrent import unrolled
from workbench.quant.simulate import EXACT

LAYERS = {
    "linear": (nn.Linear(32, 12), (5, 7, 32)),
    "linear without bias": (nn.Linear(32, 12, bias=False), (5, 32)),
    "conv1d": (nn.Conv1d(8, 12, 5, stride=2, padding=3), (2, 8, 19)),
    "conv2d": (nn.Conv2d(8, 12, 3, stride=2, padding=1), (2, 8, 9, 11)),
    "grouped dilated": (nn.Conv2d(8, 12, (3, 2), dilation=(2, 1), groups=4), (2, 8, 9, 11)),
    "depthwise": (nn.Conv2d(8, 8, 3, padding=1, groups=8), (2, 8, 6, 6)),
    "conv3d": (nn.Conv3d(4, 8, 3, padding=1), (1, 4, 3, 4, 5)),
    "transposed": (nn.ConvTranspose2d(8, 12, 2, stride=2), (2, 8, 5, 6)),
    "transposed in all ways": (
        nn.ConvTranspose2d(8, 12, 3, 2, padding=1, output_padding=1, groups=2, dilation=2),
        (2, 8, 5, 6),
    ),
}


@pytest.mark.parametrize("kind", LAYERS)
def test_a_layer_equals_its_int32_reference_bit_for_bit(kind: str, calibrated: Callable) -> None:
    torch.manual_seed(0)
    layer, shape = LAYERS[kind]
    values = torch.randn(shape)
    model = nn.Sequential(layer)
    quantized = calibrated(model, values)
    scale = torch.tensor(quantized.input_scales["0"])
    weight = quantized.weights["0.weight"], quantized.scales["0.weight"]
    other = torch.randn(shape)  # some of it beyond the calibrated range
    with torch.no_grad(), quant.Simulated(model, quantized):
        found = model(other)
    expected = integer.layer(layer, other, scale, *weight)
    assert expected.shape == found.shape
    assert torch.equal(found, expected)
    assert (found - layer(other)).norm() / layer(other).norm() < 0.1


def test_sums_beyond_what_fp32_holds_are_exact_too(calibrated: Callable) -> None:
    torch.manual_seed(0)
    values = torch.rand(4, 2048) + 0.5
    layer = nn.Linear(2048, 3, bias=False)
    layer.weight.data = torch.rand(3, 2048) + 0.5
    quantized = calibrated(nn.Sequential(layer), values)
    sums = integer.linear(
        integer.rounded(values, torch.tensor(quantized.input_scales["0"])),
        quantized.weights["0.weight"],
    )
    assert sums.min() > EXACT / 2 and sums.max() < 2048 * 127**2
    model = nn.Sequential(layer)
    with torch.no_grad(), quant.Simulated(model, quantized):
        found = model(values)
    scale = torch.tensor(quantized.input_scales["0"])
    assert torch.equal(found, integer.scaled(sums, scale, quantized.scales["0.weight"], None))


class Recurrent(nn.Module):
    """An LSTM or GRU on whole, or on packed, sequences."""

    def __init__(self, layer: nn.Module, lengths: list[int] | None = None) -> None:
        super().__init__()
        self.layer, self.lengths = layer, lengths

    def forward(self, values: Tensor) -> Tensor:
        if self.lengths:
            packed = pack_padded_sequence(values, self.lengths, batch_first=True)
            return self.layer(packed)[0].data
        answer = self.layer(values)
        return answer[0] if isinstance(answer, tuple) else answer


RECURRENT = {
    "lstm": lambda: Recurrent(nn.LSTM(8, 6, batch_first=True)),
    "two layers both ways": lambda: Recurrent(
        nn.LSTM(8, 6, 2, batch_first=True, bidirectional=True)
    ),
    "without bias": lambda: Recurrent(nn.LSTM(8, 6, 2, bias=False)),
    "packed": lambda: Recurrent(nn.LSTM(8, 6, 2, batch_first=True, bidirectional=True), [5, 3, 1]),
    "gru": lambda: Recurrent(nn.GRU(8, 6, 2, bidirectional=True)),
    "packed gru": lambda: Recurrent(nn.GRU(8, 6, batch_first=True), [5, 3, 1]),
    "gru cell": lambda: nn.Sequential(nn.Flatten(), nn.GRUCell(40, 6)),
    "lstm cell": lambda: Recurrent(nn.Sequential(nn.Flatten(), nn.LSTMCell(40, 6))),
}


class Unrolling(quant.Observing):
    """Runs recurrent layers step by step, rounding nothing."""

    def recurrent(self, name: str, kind: str, call: Callable, arguments: tuple):  # noqa: ANN201
        return unrolled(kind, arguments, lambda own, x, w, b: functional.linear(x, w, b))


@pytest.mark.parametrize("kind", RECURRENT)
def test_step_by_step_a_recurrent_layer_answers_as_fused(kind: str, settings) -> None:
    torch.manual_seed(0)
    model, values = RECURRENT[kind](), torch.randn(3, 5, 8)
    with torch.no_grad(), Unrolling(model, settings):
        found = model(values)
    torch.testing.assert_close(found, model(values))


@pytest.mark.parametrize("kind", RECURRENT)
def test_a_recurrent_layer_equals_its_int32_reference(kind: str, calibrated, settings) -> None:
    torch.manual_seed(0)
    model, values = RECURRENT[kind](), torch.randn(3, 5, 8)
    quantized = calibrated(model, values)
    names = {id(p): name for name, p in model.named_parameters()}

    class Reference(quant.Observing):
        def recurrent(self, name: str, kind: str, call: Callable, arguments: tuple):  # noqa: ANN202
            def matmul(own: bool, values: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
                site = name if own else f"{name}.hidden"
                scale, key = torch.tensor(quantized.input_scales[site]), names[id(weight)]
                sums = integer.linear(integer.rounded(values, scale), quantized.weights[key])
                return integer.scaled(sums, scale, quantized.scales[key], bias)

            return unrolled(kind, arguments, matmul)

    with torch.no_grad():
        with quant.Simulated(model, quantized):
            found = model(values)
        with Reference(model, settings):
            expected = model(values)
        exact = model(values)
    assert torch.equal(found, expected)
    assert 0 < (found - exact).norm() / exact.norm() < 0.05
    (hidden,) = (s for name, s in quantized.input_scales.items() if name.endswith(".hidden"))
    assert hidden == 1 / 127  # a hidden state is at most 1


class Residual(nn.Module):
    """x + f(x), added in place or not."""

    def __init__(self, in_place: bool) -> None:
        super().__init__()
        self.inner, self.in_place = nn.Linear(8, 8), in_place

    def forward(self, values: Tensor) -> Tensor:
        inner = self.inner(values)
        if self.in_place:
            inner += values
            return inner
        return inner + values


@pytest.mark.parametrize("in_place", [False, True])
def test_an_add_equals_its_int8_reference(in_place: bool, calibrated: Callable) -> None:
    torch.manual_seed(0)
    model, values = Residual(in_place), torch.randn(4, 8)
    quantized = calibrated(model, values)
    scales = {site: torch.tensor(s) for site, s in quantized.input_scales.items()}
    assert scales.keys() == {"inner", ":add0.left", ":add0.right"}
    with torch.no_grad(), quant.Simulated(model, quantized):
        found = model(values)
    weight = quantized.weights["inner.weight"], quantized.scales["inner.weight"]
    inner = integer.layer(model.inner, values, scales["inner"], *weight)
    left, right = scales[":add0.left"], scales[":add0.right"]
    expected = integer.add(
        integer.rounded(inner, left), left, integer.rounded(values, right), right
    )
    assert torch.equal(found, expected)


class Attention(nn.Module):
    """Attention of a sequence to itself, and a product of two activations."""

    def __init__(self, **arguments: object) -> None:
        super().__init__()
        self.arguments = arguments

    def forward(self, values: Tensor) -> Tensor:
        seen = functional.scaled_dot_product_attention(values, values, values, **self.arguments)
        return seen @ values.transpose(-2, -1)


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"is_causal": True},
        {"scale": 0.3},
        {"attn_mask": torch.tensor([[True, False], [True, True]]).repeat(3, 3)},
        {"attn_mask": torch.linspace(-3, 3, 36).view(6, 6)},
    ],
)
def test_attention_is_close_and_off_unless_asked_for(
    arguments: dict, calibrated: Callable, settings
) -> None:
    torch.manual_seed(0)
    model, values = Attention(**arguments), torch.randn(2, 3, 6, 8)
    model.anchor = nn.Parameter(torch.zeros(1))  # so that the model has a device
    quantized = calibrated(model, values)
    assert quantized.attention and quantized.input_scales[":attention0.weights"] == 1 / 127
    with torch.no_grad(), quant.Simulated(model, quantized):
        found = model(values)
    assert 0 < (found - model(values)).norm() / model(values).norm() < 0.03
    settings.attention = False
    assert calibrated(model, values).input_scales == {}


def test_a_site_that_calibration_never_ran_is_refused(calibrated: Callable) -> None:
    model, values = Residual(False), torch.randn(4, 8)
    quantized = calibrated(model, values)
    model.forward = lambda x: x + x + x
    with (
        pytest.raises(quant.QuantError, match=":add1.left was never run during calibration"),
        quant.Simulated(model, quantized),
    ):
        model(values)


def test_the_simulation_leaves_the_model_as_it_was(calibrated: Callable) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 8))
    values = torch.randn(128, 64)
    exact, quantized = model(values), calibrated(model, values)
    with quant.Simulated(model, quantized):
        rounded = model(values)
    assert 0 < ((rounded - exact).norm() / exact.norm()).item() < 0.03
    assert torch.equal(model(values), exact)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_one_layer_alone_can_be_rounded_and_errors_are_told_by_layer(calibrated) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 8))
    values = torch.randn(128, 64)
    quantized = calibrated(model, values)
    exact = model(values)
    with torch.no_grad(), quant.Measuring(model, quantized) as measured:
        assert torch.equal(model(values), exact)
    with torch.no_grad(), quant.Simulated(model, quantized, only={"2"}):
        alone = model(values)
    # the last layer's own error is the output's if nothing else is rounded
    expected = ((alone - exact).norm() / exact.norm()).item()
    assert measured.errors()["2"] == pytest.approx(expected, rel=1e-5)
    assert measured.errors().keys() == {"0", "2"}
