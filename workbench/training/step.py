"""One step of the optimizer: gradients of a process's shares of a batch, clipped, and applied."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn, optim

from workbench.tasks.base import Task, moved
from workbench.training.sharing import Sharing


@dataclass(frozen=True)
class Step:
    """What every step of a phase works with; `wrapped` and `optimizer` as accelerate made them."""

    accelerator: Accelerator
    task: Task
    wrapped: nn.Module
    optimizer: optim.Optimizer
    sharing: Sharing
    held: Any
    clip_norm: float | None

    def __call__(self, batches: Iterator[Any], number: int) -> Tensor:
        """Step `number` with this process's shares of a batch; the mean of their losses."""
        mine, losses = self.sharing.shares.mine, []
        for share in mine:
            self.sharing.seed(number, share)
            last = share == mine[-1]  # processes exchange gradients once a step
            with contextlib.nullcontext() if last else self.accelerator.no_sync(self.wrapped):
                batch = moved(next(batches), self.accelerator.device)
                losses.append(self._backward(batch, share))
        self._update()
        return losses[0] if len(mine) == 1 else torch.stack(losses).mean()

    def uncut(self, batch: Any) -> Tensor:
        """A step with a whole batch that is on the device; its loss."""
        loss = self._backward(batch, self.sharing.shares.mine[0])
        self._update()
        return loss

    def _backward(self, batch: Any, share: int) -> Tensor:
        """Add the gradients of a share, one of this process's; its loss."""
        carry = self.sharing.carry
        with self.accelerator.autocast():
            loss, carry[share] = self.task.loss(self.wrapped, batch, carry[share])
        self.accelerator.backward(loss / len(self.sharing.shares))
        return loss.detach()

    def _update(self) -> None:
        if self.clip_norm:
            self.accelerator.unscale_gradients()
            if self.held:
                self.held.mask_gradients()
            nn.utils.clip_grad_norm_(self.wrapped.parameters(), self.clip_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
