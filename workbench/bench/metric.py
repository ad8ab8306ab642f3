"""What swapping does to a task's metric, of a checkpoint that the pipeline made."""

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

import sparse24
from workbench.data.source import DataError
from workbench.stages.weights import load, recorded_weights
from workbench.stages.work import Work
from workbench.tasks import Task
from workbench.tasks.base import moved


def metric(work: Work, precision: str, swap: Callable[..., Any] = sparse24.swap) -> dict[str, Any]:
    """The metric of a retrained network, dense and swapped, or why there is none.

    `work` is of the stage retrain; dense is judged as that stage judged it. The difference is in
    the metric's good direction.
    """
    path = work.out / "final.safetensors"
    if not path.exists():
        return {"reason": f"no checkpoint: {path.name} of {work.cell.folder} is absent"}
    phase = work.spec.last_phase
    try:
        task = work.task(phase)
    except DataError as error:
        return {"reason": str(error)}
    model = work.model(phase, task)
    load(model, recorded_weights(path))
    dense = _judged(work, task, model)
    with work.judging(model):
        swap(model, precision=precision, example=_example(work, task, model))
    sparse = _judged(work, task, model)
    sign = 1 if task.higher_is_better else -1
    return {
        "name": task.metric,
        "scale": work.cell.scale,
        "dense": dense,
        "sparse": sparse,
        "difference": sign * (sparse - dense),
    }


def _judged(work: Work, task: Task, model: nn.Module) -> float:
    with work.judging(model):
        return float(task.evaluate(model, work.accelerator.device)[task.metric])


def _example(work: Work, task: Task, model: nn.Module) -> tuple[Any, ...]:
    """The arguments with which the task calls the model, of one batch, all by place."""
    found: list[tuple[Any, ...]] = []

    def note(_: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        bound = inspect.signature(model.forward).bind(*args, **kwargs)
        bound.apply_defaults()
        found.append(bound.args)

    handle = model.register_forward_pre_hook(note, with_kwargs=True)
    batch = moved(next(iter(task.training_batches(0, 1))), torch.device(work.accelerator.device))
    try:
        task.run(model, batch, None)
    finally:
        handle.remove()
    return found[0]
