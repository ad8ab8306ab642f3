"""The seam between training and tasks: one small base class and its implementations."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from workbench.data.augment import Named
from workbench.data.loader import (
    Order,
    Shares,
    Steps,
    held_out_loader,
    shuffled,
    training_loader,
)
from workbench.data.source import open_source
from workbench.sections import Phase
from workbench.tasks.teacher import Teacher

WHOLE = Shares()


class Task(ABC):
    """One task on one data set; `metric` is the primary name in what `evaluate` returns.

    `why_no_graph` tells why a training step cannot be recorded once and replayed with the next
    batch, and is None if it can: the loss asks the device nothing, batches are of a few shapes.
    `distills` says whether the loss takes what a `teacher` says into account, once one is set.
    """

    metric: str
    higher_is_better: bool
    why_no_graph: str | None
    distills = False
    teacher: Teacher | None = None
    train: Dataset
    held_out: Dataset

    def __init__(self, phase: Phase, seed: int, root: Path):
        """Open the data of the phase; `seed` decides the order and all that is drawn."""
        self.phase, self.seed = phase, seed
        self.source = open_source(phase.data.name, root)

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps in one pass over the training examples."""
        return max(1, len(self.train) // self.phase.train.batch)

    @property
    def collate(self) -> Callable[[list[Any]], Any]:
        """How examples become a batch."""
        return torch.utils.data.default_collate

    def order(self) -> Order:
        """Which examples a step sees."""
        return shuffled(len(self.train), self.phase.train.batch, self.seed)

    def training_batches(self, start: int, stop: int, shares: Shares = WHOLE) -> DataLoader:
        """The batches of steps `start` to `stop`, or of each the shares that a process takes."""
        steps = Steps(self.order(), self.seed, start, stop, shares)
        return training_loader(self.train, steps, self.collate, self.phase.train.workers)

    def held_out_batches(self) -> DataLoader:
        """The held-out examples in order, as many as the spec asks for."""
        judged = self.phase.eval
        return held_out_loader(
            self.held_out, judged.batch, judged.limit, self.collate, self.phase.train.workers
        )

    @property
    def augment(self) -> Named | None:
        """The augmentations of the spec by name, or None for those of the data's reader."""
        chosen = self.phase.data.augment
        return None if chosen is None else [(each.name, each.args) for each in chosen]

    def digests(self) -> dict[str, str]:
        """Digests of what was learned from data besides weights, such as a vocabulary."""
        return {}

    @classmethod
    @abstractmethod
    def declared_shape(cls, phase: Phase, entry: dict[str, Any]) -> dict[str, Any]:
        """The builder arguments that follow from a catalog entry: classes, vocabulary, head."""

    def shape(self) -> dict[str, Any]:
        """The builder arguments that follow from the data as it was read."""
        return self.declared_shape(self.phase, self.source.entry)

    @abstractmethod
    def loss(self, model: nn.Module, batch: Any, carry: Any) -> tuple[Tensor, Any]:
        """The loss of a batch (scalar) and what the next step needs of this one."""

    def run(self, model: nn.Module, batch: Any, carry: Any) -> Any:
        """One pass in inference mode over a training batch, to calibrate; returns the carry."""
        return self.loss(model, batch, carry)[1]

    @abstractmethod
    def evaluate(self, model: nn.Module, device: torch.device) -> dict[str, float]:
        """Metrics on the held-out data."""

    @abstractmethod
    def chance(self) -> float:
        """The primary metric of the best guess that ignores its input."""


def moved(batch: Any, device: torch.device) -> Any:
    """The batch with its tensors on the device."""
    if isinstance(batch, Tensor):
        return batch.to(device, non_blocking=True)
    if isinstance(batch, dict):
        return {name: moved(value, device) for name, value in batch.items()}
    if isinstance(batch, list | tuple):
        return type(batch)(moved(value, device) for value in batch)
    return batch
