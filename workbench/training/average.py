"""Averaging of checkpoints: the mean of the weights at the last few ends of an interval."""

from typing import Any

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from workbench.durations import steps
from workbench.sections import Average


class AverageError(ValueError):
    """Checkpoints that cannot be averaged; the message says what is allowed."""


class Averaging:
    """The running mean of a model's weights; zeros that masks hold are means of zeros."""

    def __init__(
        self,
        spec: Average,
        model: nn.Module,
        phase: str,
        length: int,
        steps_per_epoch: int,
        device: torch.device,
    ):
        """Checkpoints end at `length` steps; the mean is as large as the model, on the device."""
        self.last, self.length = spec.last, length
        self.every = max(1, steps(spec.every, steps_per_epoch, length))
        if self.last * self.every > length:
            raise AverageError(
                f"phase {phase}: train.average takes {self.last} checkpoints of {self.every} "
                f"steps, and the phase has {length} steps; at most {length // self.every} fit"
            )
        if any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules()):
            raise AverageError(
                f"phase {phase}: train.average: the network has batch norms, whose running "
                "statistics belong to other weights than the mean; leave average out"
            )
        self.model, self.mean = model, AveragedModel(model, device)

    def update(self, done: int) -> None:
        """Take the weights in, if a checkpoint ends with `done` steps."""
        ahead, rest = divmod(self.length - done, self.every)
        if not rest and ahead < self.last:
            self.mean.update_parameters(self.model)

    def state(self) -> dict[str, Any]:
        """What resuming needs."""
        return self.mean.state_dict()

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a state."""
        self.mean.load_state_dict(state)

    def finish(self) -> None:
        """Give the model the mean."""
        self.model.load_state_dict(self.mean.module.state_dict())
