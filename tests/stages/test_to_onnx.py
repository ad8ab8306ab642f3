"""From the file of stage quantize to ONNX: onnxruntime is judged as the record was."""

import onnx
import onnxruntime
import torch
from torch import Tensor, nn

from workbench import stages
from workbench.quant.files import restored
from workbench.sparsity import is_nm
from workbench.stages.to_onnx import onnx_of
from workbench.stages.weights import read_weights

NETWORK = "resnet20_cifar"


class Session(nn.Module):
    """A model that answers by onnxruntime, as written or rewritten for speed."""

    def __init__(self, proto: onnx.ModelProto, rewritten: bool) -> None:
        super().__init__()
        options, levels = onnxruntime.SessionOptions(), onnxruntime.GraphOptimizationLevel
        if not rewritten:
            options.graph_optimization_level = levels.ORT_DISABLE_ALL
        self.session = onnxruntime.InferenceSession(proto.SerializeToString(), options)

    def forward(self, images: Tensor) -> Tensor:
        (wanted,) = self.session.get_inputs()
        return torch.from_numpy(self.session.run(None, {wanted.name: images.numpy()})[0])


def test_onnxruntime_is_as_accurate_as_the_record(work_of) -> None:
    for cell in (("dense", "dense"), ("2to4", "prune"), ("2to4", "retrain"), ("2to4", "quantize")):
        work = work_of(NETWORK, *cell)
        record = stages.run(work)
        record.write(work.out / "record.json")
    proto = onnx_of(work)
    task = work.task("train")
    device = torch.device("cpu")
    found = task.evaluate(Session(proto, rewritten=False), device)
    assert found["top1"] == record.metrics["train/top1"]
    assert abs(found["loss"] - record.metrics["train/loss"]) < 1e-4
    faster = task.evaluate(Session(proto, rewritten=True), device)
    assert abs(faster["top1"] - record.metrics["train/top1"]) <= 100 / 64  # one of 64 images
    stored = {i.name: onnx.numpy_helper.to_array(i).copy() for i in proto.graph.initializer}
    quantized = restored(work.model("train", task), read_weights(work.out / "int8.safetensors"))
    for name in work.masks():
        weight = torch.from_numpy(stored[f"{name}.int8"])
        assert torch.equal(weight, quantized.weights[name]) and is_nm(weight, 2, 4), name
