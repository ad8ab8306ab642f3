"""INT8 networks: each layer is the workbench's integer reference, and int8 goes between layers."""

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import sparse24
from sparse24.packed_layer import PackedLayer
from sparse24.rounding import norm, to_int8
from tests.kernels.networks import RESNETS, apart, bert, resnet
from workbench import quant
from workbench.deploy import scales_of
from workbench.quant import integer


def quantized(model: nn.Module, inputs: Tensor | dict, adds: bool) -> quant.Quantized:
    """The INT8 form of a network as stage quantize makes it, its batch norms folded."""
    settings = SimpleNamespace(
        calibrator="max", percentile=99.99, keep_fp16=(), attention=False, adds=adds
    )
    with torch.no_grad():
        with quant.Following(model) as followed:
            call(model, inputs)
        quant.fold(model, followed.pairs())
        with quant.Observing(model, settings) as seen:
            call(model, inputs)
    return quant.quantize(model, seen.ranges())


def call(model: nn.Module, inputs: Tensor | dict) -> Tensor:
    with torch.no_grad():
        if isinstance(inputs, dict):
            return next(iter(model(**inputs).values()))
        return model(inputs.to(next(model.parameters()).dtype))


class Watched:
    """What each packed layer gets and gives while the block runs a model."""

    def __init__(self, model: nn.Module) -> None:
        self.layers = {n: m for n, m in model.named_modules() if isinstance(m, PackedLayer)}
        self.seen: dict[str, tuple[Tensor, Tensor | None, Tensor]] = {}

    def __enter__(self) -> "Watched":
        self.handles = [
            layer.register_forward_hook(self._noting(name), with_kwargs=True)
            for name, layer in self.layers.items()
        ]
        return self

    def __exit__(self, *error: object) -> None:
        for handle in self.handles:
            handle.remove()

    def _noting(self, name: str):
        def note(layer: nn.Module, args: tuple, kwargs: dict, result: Tensor) -> None:
            residual = args[1] if len(args) > 1 else kwargs.get("residual")
            self.seen[name] = args[0], residual, result

        return note


def reference(layer: PackedLayer, x: Tensor, residual: Tensor | None) -> Tensor:
    """The layer's result in fp32 by int32 sums, before it is rounded to its type."""
    step = torch.tensor(layer.scales.x)
    xq = x if x.dtype is torch.int8 else integer.rounded(x, step)
    dense, places = layer.dense(), (1,) * (layer.weight.unpack().ndim - 2)
    sums = integer.accumulated(dense, xq, layer.weight.unpack())
    shape = (-1, *places)
    bias = None if layer.bias is None else layer.bias.view(shape)
    total = integer.scaled(sums, step, layer.scales.weight.view(shape), bias)
    if residual is not None and residual.dtype is torch.int8:
        residual = residual.float() * torch.tensor(layer.scales.residual)
        if layer.scales.out is None:  # it becomes of the result's type first
            residual = residual.half()
    total = total if residual is None else total + residual.float()
    kind = layer.activation
    return F.gelu(total) if kind == "gelu" else F.relu(total) if kind == "relu" else total


def agree(layer: PackedLayer, x: Tensor, residual: Tensor | None, result: Tensor) -> None:
    """Bit for bit in fp16; in int8 but for values half way between two integers.

    The kernels multiply by a step's reciprocal where the reference divides by it: the quotients
    differ by their last bit, which shows at such a value alone, then by one.
    """
    exact = reference(layer, x, residual)
    if result.dtype is torch.float16:
        assert torch.equal(result, exact.half())
        return
    assert result.dtype is torch.int8
    expected = integer.rounded(exact, torch.tensor(layer.scales.out))
    differ = expected != result
    assert differ.float().mean() < 1e-3
    halves = (exact[differ].double() / layer.scales.out).abs() % 1 - 0.5
    assert (halves.abs() < 1e-4).all()


@pytest.mark.parametrize("adds", [True, False])
@pytest.mark.parametrize("network", [*RESNETS, "bert_large"])
def test_every_layer_is_the_integer_reference(network: str, adds: bool) -> None:
    model, inputs = bert() if network == "bert_large" else resnet(network)
    int8 = quantized(model, inputs, adds)
    exact = call(model, inputs)
    with quant.Simulated(model, int8):
        simulated = call(model, inputs)
    sparse24.swap(model, precision="int8", scales=scales_of(int8))
    with Watched(model) as watched:
        found = call(model, inputs)
    assert len(watched.seen) == len(watched.layers) > 10
    for name, (x, residual, result) in watched.seen.items():
        layer = watched.layers[name]
        for parameter in int8.weights.keys() & {f"{name}.weight"}:
            assert torch.equal(layer.weight.unpack(), int8.weights[parameter])
            assert torch.equal(layer.scales.weight, int8.scales[parameter])
        agree(layer, x, residual, result)
    # the simulation rounds the stem's input and the other side of an INT8 add too, we to fp16: as
    # far from the floats as it is, but not the same way
    assert apart(found, exact) < 1.5 * apart(simulated, exact) < 0.06


def given(model: nn.Module, inputs: Tensor | dict) -> dict[str, list[torch.dtype]]:
    """The types of input, residual and result of each packed layer."""
    with Watched(model) as watched:
        call(model, inputs)
    return {
        name: [t.dtype for t in tensors if t is not None] for name, tensors in watched.seen.items()
    }


def test_between_convolutions_all_is_int8_where_the_adds_are() -> None:
    model, images = resnet()
    sparse24.swap(model, precision="int8", scales=scales_of(quantized(model, images, True)))
    types = given(model, images)
    half, byte = torch.float16, torch.int8
    assert types["layer1.0.conv1"] == [half, byte]  # from the stem, which stays fp16
    assert types["layer1.0.conv2"] == [byte, byte]
    assert types["layer1.0.conv3"] == [byte, byte, byte]  # input, residual, result
    assert types["layer2.0.conv1"] == [byte, byte]
    assert types["layer2.0.downsample.0"] == [byte, byte]
    assert types["layer4.0.conv3"] == [byte, byte, half]  # for the pooling
    assert types["fc"] == [half, half]


def test_residuals_stay_floats_where_the_adds_are_not_int8() -> None:
    model, images = resnet()
    sparse24.swap(model, precision="int8", scales=scales_of(quantized(model, images, False)))
    types = given(model, images)
    half, byte = torch.float16, torch.int8
    assert types["layer1.0.conv2"] == [byte, byte]
    assert types["layer1.0.conv3"] == [byte, half, half]
    assert types["layer2.0.downsample.0"] == [half, half]


def test_a_layer_without_a_scale_stays_in_fp16_and_its_neighbours_give_floats() -> None:
    model, images = resnet()
    scales = scales_of(quantized(model, images, True))
    del scales["layer1.0.conv2"]
    table = {r.name: r for r in sparse24.swap(model, precision="int8", scales=scales)}
    types = given(model, images)
    half, byte = torch.float16, torch.int8
    assert types["layer1.0.conv1"] == [half, half]
    assert types["layer1.0.conv2"] == [half, half]
    assert types["layer1.0.conv3"] == [half, byte, byte]
    assert table["layer1.0.conv2"].reason == "2:4, not measured; relu fused"
    assert table["layer1.0.conv1"].reason == "2:4, not measured; relu fused; INT8, float result"
    assert table["layer1.0.conv3"].reason == (
        "2:4, not measured; residual fused; relu fused; INT8, int8 result"
    )


def test_the_encoder_holds_the_integers_of_the_checkpoint() -> None:
    model, tokens = bert()
    int8 = quantized(model, tokens, False)
    sparse24.swap(model, precision="int8", scales=scales_of(int8))
    layer, name = model.bert.encoder.layer[0].layers[1], "bert.encoder.layer.1"
    own = [int8.weights[f"{name}.attention.self.{n}.weight"] for n in ("query", "key", "value")]
    assert torch.equal(layer.inputs[0].weight.unpack(), torch.cat(own))
    for made, part in (
        (layer.output, "attention.output.dense"),
        (layer.up, "intermediate.dense"),
        (layer.down, "output.dense"),
    ):
        assert torch.equal(made.weight.unpack(), int8.weights[f"{name}.{part}.weight"])
        assert made.scales.x == int8.input_scales[f"{name}.{part}"]
    assert layer.up.scales.out == layer.down.scales.x


def test_query_key_and_value_of_different_steps_are_three_products() -> None:
    model, tokens = bert()
    scales = scales_of(quantized(model, tokens, False))
    scales["bert.encoder.layer.1.attention.self.key"] *= 1.25
    wanted = call(model, tokens)
    table = sparse24.swap(model, precision="int8", scales=scales)
    layers = model.bert.encoder.layer[0].layers
    assert [len(layer.inputs) for layer in layers] == [1, 3, 1]
    assert layers[1].reciprocal is None  # what no single rounding serves
    assert "bert.encoder.layer.1.attention.self.key" in [row.name for row in table]
    assert apart(call(model, tokens), wanted) < 0.03


def test_calibration_on_an_example_gives_the_ranges_of_the_largest_values() -> None:
    model, images = resnet()
    found = sparse24.calibrate(model, images)
    int8 = quantized(model, images, True)  # by the calibrator `max`, which is the same
    assert found.keys() == int8.input_scales.keys()
    for name, step in int8.input_scales.items():
        assert found[name] == pytest.approx(step, rel=1e-5), name  # batch norms folded or not
    broken = images.clone()
    broken[0, 0, 0, 0] = float("nan")
    with pytest.raises(ValueError, match="input of conv1 is NaN or infinite in the example"):
        sparse24.calibrate(model, broken)


def test_a_name_that_the_model_lacks_is_refused_with_the_nearest() -> None:
    model, images = resnet()
    with pytest.raises(ValueError, match=r"no module 'layer1.0.conv9': is it 'layer1.0.conv"):
        sparse24.swap(model, precision="int8", scales={"layer1.0.conv9": 1.0})


def test_casting_a_model_leaves_the_steps_as_they_are() -> None:
    model, images = resnet()
    sparse24.swap(model, precision="int8", example=images)
    before = model.layer1[0].conv1.steps.clone(), call(model, images)
    model.half()
    assert torch.equal(model.layer1[0].conv1.steps, before[0])
    # the biases were cast: at most 2^-11 of each
    assert apart(call(model, images), before[1]) < 0.02


def test_a_norm_gives_its_rounded_result_beside_it() -> None:
    layer, x = nn.LayerNorm(16), torch.randn(5, 16)
    step = torch.tensor(1 / 0.03)
    result, rounded = norm(x, layer, step)
    assert torch.equal(result, layer(x))
    assert torch.equal(rounded, to_int8(result, step))
    assert rounded.tolist() == (result * step).round().clamp(-127, 127).tolist()


def test_int8_layers_measure_with_their_epilogue(tmp_path) -> None:
    from sparse24.bench import Timing
    from sparse24.dispatch import Measured

    model, images = resnet()
    seen = set()

    def timer(calls) -> Timing:
        choice, x, w, _, finish, *_ = calls[0].args
        seen.add((x.dtype, finish[1] is not None, finish[2] is not None, finish[3]))
        return Timing(1.0, 1.0, 1.0) if choice.backend == "sparse24" else Timing(2.0, 2.0, 2.0)

    options = {"timer": timer, "store": Measured(tmp_path / "times.json"), "measure": True}
    table = sparse24.swap(model, precision="int8", example=images, **options)
    # residual, scale, and the type of the result: 2 is int8, 0 float16 (seam.py)
    assert seen == {
        (torch.int8, residual, True, out) for residual in (True, False) for out in (0, 2)
    }
    told = {row.name: row.reason for row in table}
    assert told["layer1.0.conv2"].startswith("2:4; images: 3: sparse24")
    assert told["layer1.0.conv2"].endswith("; batch norm folded; relu fused; INT8, int8 result")
