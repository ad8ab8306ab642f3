"""BERT as ONNX with Q/DQ: onnxruntime gives the logits of the simulation, at another length."""

import onnx
import onnxruntime
import torch
from torch import Tensor

from workbench import models, quant
from workbench.compression import Quantize
from workbench.quant.files import restored
from workbench.quant.qdq import to_onnx
from workbench.sparsity import is_nm, prune


def questions(batch: int, length: int) -> dict[str, Tensor]:
    """Tokens of which the second half is the passage and the last three are padding."""
    half = torch.arange(length) >= length // 2
    return {
        "input_ids": torch.randint(1, 64, (batch, length)),
        "token_type_ids": half.long().expand(batch, length),
        "attention_mask": (torch.arange(length) < length - 3).long().expand(batch, length),
    }


def test_onnxruntime_gives_the_logits_of_the_simulated_bert() -> None:
    torch.manual_seed(0)
    sizes = {"layers": 2, "hidden": 64, "heads": 2, "feed_forward": 128, "vocabulary": 64}
    model = models.build("bert", head="question_answering", **sizes).eval()
    masks = prune(model)
    example, other = questions(4, 24), questions(3, 17)
    with torch.no_grad(), quant.Observing(model, Quantize()) as seen:
        model(**example)
    quantized = quant.quantize(model, seen.ranges(), {})
    with torch.no_grad():
        exact = model(**other)
        with quant.Simulated(model, quantized):
            expected = model(**other)
    restored(model, quantized.tensors())
    proto = to_onnx(model, quantized, (), example)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options)
    found = session.run(None, {name: value.numpy() for name, value in other.items()})
    for logits, wanted in zip(found, (expected.start_logits, expected.end_logits), strict=True):
        torch.testing.assert_close(torch.from_numpy(logits), wanted, rtol=1e-4, atol=1e-4)
    # INT8 shows in the logits, or the comparison above would say nothing
    assert (exact.start_logits - expected.start_logits).abs().max() > 1e-3
    stored = {i.name: onnx.numpy_helper.to_array(i).copy() for i in proto.graph.initializer}
    for name in masks:
        weight = torch.from_numpy(stored[f"{name}.int8_transposed"].T)
        assert torch.equal(weight, quantized.weights[name]) and is_nm(weight, 2, 4), name
