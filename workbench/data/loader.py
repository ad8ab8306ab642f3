"""Batches as a pure function of (seed, step): resuming or adding workers changes nothing."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from workbench.seeds import seed_for

Order = Callable[[int], list[int]]
Item = tuple[int, int]


def shuffled(examples: int, batch: int, seed: int, lengths: list[int] | None = None) -> Order:
    """The order of examples: a new permutation each epoch, the last partial batch left out.

    With `lengths`, examples of similar length meet in one batch: each run of 50 batches is
    sorted by length, then the batches are shuffled again.
    """
    batch = min(batch, examples)
    per_epoch = examples // batch
    drawn: dict[int, torch.Tensor] = {}

    def permutation(epoch: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(seed_for(seed, "order", epoch))
        order = torch.randperm(examples, generator=generator)
        if lengths is None:
            return order
        runs = order.split(50 * batch)
        size = torch.tensor(lengths)
        order = torch.cat([run[size[run].argsort(stable=True)] for run in runs])
        batches = order[: per_epoch * batch].view(per_epoch, batch)
        return batches[torch.randperm(per_epoch, generator=generator)].view(-1)

    def order(step: int) -> list[int]:
        epoch, position = divmod(step, per_epoch)
        if epoch not in drawn:
            drawn.clear()
            drawn[epoch] = permutation(epoch)
        return drawn[epoch][position * batch : (position + 1) * batch].tolist()

    return order


@dataclass(frozen=True)
class Shares:
    """Which shares of each batch a process takes: `mine`, of `of` in all."""

    mine: tuple[int, ...] = (0,)
    of: int = 1

    def __len__(self) -> int:
        """How many shares the process takes of each batch."""
        return len(self.mine)


class Steps(Sampler[list[Item]]):
    """For each step of a range and each of a process's shares the (index, key) pairs."""

    def __init__(self, order: Order, seed: int, start: int, stop: int, shares: Shares):
        """Share i of n has every n-th example of each batch, from the i-th on."""
        self.order, self.seed = order, seed
        self.start, self.stop, self.shares = start, stop, shares

    def __len__(self) -> int:
        """The number of shares left."""
        return (self.stop - self.start) * len(self.shares)

    def __iter__(self) -> Iterator[list[Item]]:
        """The pairs; a key seeds what is random about one presentation of one example."""
        for step in range(self.start, self.stop):
            batch = self.order(step)
            for share in self.shares.mine:
                indices = batch[share :: self.shares.of]
                yield [(index, seed_for(self.seed, "draw", step, index)) for index in indices]


def training_loader(
    dataset: Dataset, steps: Steps, collate: Callable[[list[Any]], Any], workers: int
) -> DataLoader:
    """A loader over the shares of the steps that are left."""
    return DataLoader(
        dataset,
        batch_sampler=steps,
        collate_fn=collate,
        num_workers=workers,
        pin_memory=torch.cuda.is_available(),
        generator=torch.Generator(),  # its own, or starting a loader would move dropout's
    )


def held_out_loader(
    dataset: Dataset,
    batch: int,
    limit: int | None,
    collate: Callable[[list[Any]], Any],
    workers: int = 0,
) -> DataLoader:
    """A loader over the first `limit` held-out examples, in order."""
    count = len(dataset) if limit is None else min(limit, len(dataset))
    groups = [
        [(index, 0) for index in range(start, min(start + batch, count))]
        for start in range(0, count, batch)
    ]
    return DataLoader(dataset, batch_sampler=groups, collate_fn=collate, num_workers=workers)


def seeded(key: int, function: Callable[[], Any]) -> Any:
    """The function's value with torch's generator seeded by the key, and restored afterwards."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(key)  # of CUDA nothing is drawn here
        return function()
