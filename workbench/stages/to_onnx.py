"""A finished INT8 network as ONNX with Q/DQ nodes."""

from typing import Any

import torch
from torch import nn

from workbench.quant.files import restored
from workbench.quant.qdq import to_onnx
from workbench.stages.weights import read_weights
from workbench.stages.work import Work
from workbench.tasks import Task


def onnx_of(work: Work) -> Any:
    """The onnx.ModelProto of what a stage quantize wrote.

    The example call that the exporter needs is the model's first on a training batch.
    """
    phase = work.spec.last_phase
    task = work.task(phase)
    model = work.model(phase, task).eval()
    args, kwargs = _example(task, model)
    quantized = restored(model, read_weights(work.out / "int8.safetensors"))
    return to_onnx(model, quantized, args, kwargs)


def _example(task: Task, model: nn.Module) -> tuple[tuple, dict[str, Any]]:
    calls: list[tuple[tuple, dict[str, Any]]] = []
    handle = model.register_forward_pre_hook(
        lambda _, args, kwargs: calls.append((args, kwargs)), with_kwargs=True
    )
    with torch.no_grad():
        task.run(model, next(iter(task.training_batches(0, 1))), None)
    handle.remove()
    return calls[0]
