"""Sharing: a batch cut into shares for processes and accumulation, and what each share carries."""

from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from workbench.data.loader import Order, Shares
from workbench.seeds import seed_for
from workbench.tasks.base import moved

CPU = torch.device("cpu")


class SharingError(ValueError):
    """Shares that no such processes or no such batch can be cut into; the message says which."""


class Sharing:
    """What one process computes of each step: its shares, their randomness and their carry."""

    def __init__(self, accelerator: Accelerator, wanted: int, seed: int, phase: str):
        """`wanted` shares, of which every process takes as many, or one for each process."""
        self._accelerator, self._seed, self._phase = accelerator, seed, phase
        rank, world = accelerator.process_index, accelerator.num_processes
        count = world if wanted == 1 else wanted
        if count % world:
            raise SharingError(
                f"phase {phase}: {world} processes cannot take {count} shares of a batch evenly; "
                f"start a number of processes that divides train.shares, or change it"
            )
        self.shares = Shares(tuple(range(rank, count, world)), count)
        self.carry: dict[int, Any] = dict.fromkeys(self.shares.mine)

    def check(self, order: Order, step: int) -> None:
        """Refuse a batch that cannot be cut into equal shares: their mean would be another loss."""
        size = len(order(step))
        if size % self.shares.of:
            raise SharingError(
                f"phase {self._phase}: a batch of {size} examples cannot be cut into "
                f"{self.shares.of} equal shares; change train.batch, train.shares or the number of "
                "processes"
            )

    def seed(self, step: int, share: int) -> None:
        """Let dropout and sampling draw by step and share, so that any process draws the same.

        A batch that is not cut draws on from the start of the phase.
        """
        if self.shares.of > 1:
            torch.manual_seed(seed_for(self._seed, "dropout", self._phase, step, share))

    def is_due(self, mine: bool) -> bool:
        """Whether the main process says so: clocks of processes differ, and all have to agree."""
        if self._accelerator.num_processes == 1:
            return mine
        vote = torch.tensor(
            float(mine and self._accelerator.is_main_process), device=self._accelerator.device
        )
        return bool(self._accelerator.reduce(vote, "sum") > 0)

    def state(self) -> dict[str, Any]:
        """What resuming needs: the carry of every share, of all processes."""
        own = [(share, moved(carry, CPU)) for share, carry in self.carry.items()]
        return {"of": self.shares.of, "carry": dict(gather_object(own))}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a state; a carry of other shares belongs to other examples and is left out."""
        if state["of"] == self.shares.of:
            device = self._accelerator.device
            self.carry = {s: moved(state["carry"][s], device) for s in self.shares.mine}
        elif any(carry is not None for carry in state["carry"].values()):
            print(
                f"phase {self._phase}: cut into {self.shares.of} shares, no longer {state['of']}: "
                "the memory of earlier steps begins empty",
                flush=True,
            )
