"""ONNX: onnxruntime runs the Q/DQ network on a CPU and answers as the integers do."""

from collections.abc import Callable

import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from workbench import models, quant
from workbench.quant.files import restored
from workbench.quant.qdq import to_onnx
from workbench.sparsity import is_nm, prune


def answers(proto: onnx.ModelProto, *inputs: Tensor, rewritten: bool = True) -> Tensor:
    options = onnxruntime.SessionOptions()
    if not rewritten:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options)
    named = {i.name: x.numpy() for i, x in zip(session.get_inputs(), inputs, strict=True)}
    return torch.from_numpy(session.run(None, named)[0])


class Mixed(nn.Module):
    """Linear layers on sequences, a transposed convolution, an add in place and one not."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(8, 16), nn.Linear(16, 16, bias=False)
        self.up = nn.ConvTranspose1d(16, 8, 2, stride=2)

    def forward(self, values: Tensor) -> Tensor:
        states = self.first(values).relu()
        states = states + self.second(states)
        states += self.second(states)
        return self.up(states.transpose(1, 2))


def resnet() -> nn.Module:
    model = models.build("cifar_resnet", blocks=1)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.uniform_(-0.2, 0.2)
            module.running_var.uniform_(0.8, 1.3)
    return model.eval()


NETWORKS = {"resnet": (resnet, (4, 3, 16, 16)), "mixed": (Mixed, (3, 5, 8))}


@pytest.mark.parametrize("name", NETWORKS)
def test_onnxruntime_answers_as_the_simulation(name: str, calibrated: Callable) -> None:
    torch.manual_seed(0)
    build, shape = NETWORKS[name]
    model, values = build(), torch.randn(shape)
    masks = prune(model)
    with torch.no_grad(), quant.Following(model) as followed:
        model(values)
    quant.fold(model, followed.pairs())
    quantized = calibrated(model, values)
    with torch.no_grad():
        exact = model(values)
        with quant.Simulated(model, quantized):
            expected = model(values)
    restored(model, quantized.tensors())
    proto = to_onnx(model, quantized, (values,))
    found = answers(proto, values, rewritten=False)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)  # fp32 sums of another order
    # by default onnxruntime rounds biases too, and so some activations to the next integer
    found = answers(proto, values)
    assert torch.equal(found.flatten(1).argmax(1), expected.flatten(1).argmax(1))
    assert (found - expected).norm() < (expected - exact).norm()
    assert answers(proto, values[:1]).shape[0] == 1  # any batch
    kinds = [node.op_type for node in proto.graph.node]
    assert kinds.count("QuantizeLinear") >= len(quantized.input_scales)
    stored = {i.name: onnx.numpy_helper.to_array(i).copy() for i in proto.graph.initializer}
    for weight in masks:
        plain = stored.get(f"{weight}.int8")
        plain = torch.from_numpy(
            plain if plain is not None else stored[f"{weight}.int8_transposed"].T
        )
        assert plain.dtype == torch.int8 and torch.equal(plain, quantized.weights[weight])
        assert is_nm(plain, 2, 4, quantized.layouts[weight])
        assert weight not in stored  # no float copy is left


def test_what_has_no_form_with_qdq_is_refused(calibrated: Callable) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm = nn.LSTM(4, 4)

        def forward(self, values: Tensor) -> Tensor:
            return self.lstm(values)[0]

    model, values = Net(), torch.randn(2, 3, 4)
    with pytest.raises(quant.QuantError, match="no Q/DQ form of .'lstm.hidden'.; keep them in"):
        to_onnx(model, calibrated(model, values), (values,))
