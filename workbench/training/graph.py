"""Steps as one CUDA graph: taken as they are a few times, then recorded once and replayed.

The graph holds the whole step: forward, loss, backward, unscaling, clipping, the optimizer with its
masks, the loss scale. What changes from step to step lies in tensors that it reads: the batch, the
learning rate, the scale, the state of the random numbers. A replay is one launch.
"""

import gc
from collections.abc import Callable, Iterator
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from workbench.sections import Train
from workbench.tasks.base import Task, moved
from workbench.training.step import Step

WARM_UP = 3  # steps of a shape before it is recorded: libraries load and choose their kernels
MOST_SHAPES = 4  # every graph keeps the memory of a step

Shapes = tuple[tuple[torch.Size, torch.dtype], ...]


class GraphError(ValueError):
    """Steps that cannot be replayed; the message says why, and what to do."""


def obstacle(task: Task, train: Train, accelerator: Accelerator, chooses: bool) -> str | None:
    """Why the steps of a phase cannot be one graph, or None; `chooses`: masks, as it trains."""
    if accelerator.device.type != "cuda":
        return f"graphs are for GPUs, and the device is {accelerator.device.type}"
    if accelerator.num_processes > 1:
        return f"{accelerator.num_processes} processes exchange gradients"
    if train.shares > 1:
        return f"a batch is cut into {train.shares} shares"
    if chooses:
        return "the treatment's schedule chooses masks between steps"
    return task.why_no_graph


class Graphed:
    """Steps of batches that are not cut, replayed from the fourth of each shape of batch on."""

    def __init__(self, step: Step, phase: str):
        """`step` is of an optimizer that was built for a graph; `phase` is for messages."""
        self._step, self._phase = step, phase
        self._taken: dict[Shapes, int] = {}
        self._recorded: dict[Shapes, Recorded] = {}

    def __call__(self, batches: Iterator[Any], number: int) -> Tensor:
        """Step `number` with the next batch; its loss."""
        batch = next(batches)
        shapes = tuple((tensor.shape, tensor.dtype) for tensor in _tensors(batch))
        if shapes in self._recorded:
            return self._recorded[shapes](batch)
        taken = self._taken[shapes] = self._taken.get(shapes, 0) + 1
        if len(self._taken) > MOST_SHAPES:
            raise GraphError(
                f"phase {self._phase}: step {number} brings the batch's shape number "
                f"{len(self._taken)}, and a graph is kept for each of at most {MOST_SHAPES}; "
                "use training_step: eager"
            )
        batch = moved(batch, self._step.accelerator.device)
        if taken <= WARM_UP:
            return aside(lambda: self._step.uncut(batch))
        recorded = self._recorded[shapes] = self._record(batch)
        return recorded(batch)

    def _record(self, batch: Any) -> "Recorded":
        try:
            return Recorded(self._step, batch)
        except RuntimeError as error:  # CUDA's: a step that asks the device, or too little memory
            why = " ".join(str(error).split())[:200]
            raise GraphError(
                f"phase {self._phase}: the step cannot be recorded ({why}); "
                "use training_step: eager"
            ) from error


class Recorded:
    """The graph of a step for one shape of batch."""

    def __init__(self, step: Step, batch: Any):
        """Record the step, without taking it, for batches like `batch`, which is on the device."""
        self._batch = _copy(batch)
        self._replay, self._loss = captured(lambda: step.uncut(self._batch))

    def __call__(self, batch: Any) -> Tensor:
        """Take the step with a batch, which may still be on the host; its loss."""
        for place, tensor in zip(_tensors(self._batch), _tensors(batch), strict=True):
            place.copy_(tensor, non_blocking=True)
        self._replay()
        return self._loss.clone()  # the next replay writes over it


def aside(step: Callable[[], Tensor]) -> Tensor:
    """The loss of a step taken on another stream.

    torch's notes on CUDA graphs ask for it: what a backward pass remembers of its stream must not
    be of the default one, on which nothing can be recorded.
    """
    stream, current = torch.cuda.Stream(), torch.cuda.current_stream()
    stream.wait_stream(current)
    with torch.cuda.stream(stream):
        loss = step()
    current.wait_stream(stream)
    return loss


def captured(step: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
    """What replays a step, and where its loss will be; nothing is computed yet."""
    gc.collect()  # garbage of the warm-up must not be freed while this records
    graph = torch.cuda.CUDAGraph()
    # the loader's thread pins memory meanwhile, which the default mode takes for an error of ours
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        loss = step()
    return graph.replay, loss


def _tensors(batch: Any) -> list[Tensor]:
    if isinstance(batch, Tensor):
        return [batch]
    if isinstance(batch, dict):
        return [tensor for value in batch.values() for tensor in _tensors(value)]
    if isinstance(batch, list | tuple):
        return [tensor for value in batch for tensor in _tensors(value)]
    raise GraphError(
        f"a batch holds a {type(batch).__name__}, which a graph cannot read anew; only tensors, in "
        "lists and mappings, are allowed: use training_step: eager"
    )


def _copy(batch: Any) -> Any:
    """A copy of a batch."""
    if isinstance(batch, Tensor):
        return batch.clone()
    if isinstance(batch, dict):
        return {name: _copy(value) for name, value in batch.items()}
    return type(batch)(_copy(value) for value in batch)
