"""Export of a finished INT8 network to ONNX."""

from typing import Any

import torch
from torch import nn

from workbench.quant.export import read
from workbench.quant.qdq import to_onnx
from workbench.stages.work import StageError, Work


def onnx_of(work: Work) -> Any:
    """The onnx.ModelProto of the INT8 network that a stage quantize wrote, with Q/DQ nodes.

    The example call that the exporter needs is the model's first on a training batch.
    """
    path = work.out / "int8.safetensors"
    if not path.exists():
        raise StageError(f"{path} is absent; run the stage quantize first")
    phase = work.spec.last_phase
    task = work.task(phase)
    model = work.model(phase, task).eval()
    args, kwargs = _example(work, task, model)
    return to_onnx(model, read(path), args, kwargs)


def _example(work: Work, task: Any, model: nn.Module) -> tuple[tuple, dict[str, Any]]:
    calls: list[tuple[tuple, dict[str, Any]]] = []
    handle = model.register_forward_pre_hook(
        lambda _, args, kwargs: calls.append((args, kwargs)), with_kwargs=True
    )
    with torch.no_grad():
        task.run(model, next(iter(task.training_batches(0, 1))), None)
    handle.remove()
    return calls[0]
