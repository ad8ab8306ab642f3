"""Choosing: masks that are chosen while a phase trains, by the schedule of a treatment."""

from typing import Any

from torch import nn, optim

from workbench.compression import Treatment
from workbench.files import whole
from workbench.sparsity import Masks, Plan, Scheduled
from workbench.stages.work import Work
from workbench.training.resume import Row


class Choosing:
    """The schedule of a treatment in one phase: begins with its training, ends with its masks."""

    def __init__(self, work: Work, phase: str) -> None:
        """For the phase `phase` of a stage whose treatment has a schedule."""
        self._work, self._file = work, work.resume.folder / f"{phase}.masks"
        self._scheduled: Scheduled | None = None

    def begin(self, model: nn.Module, optimizer: optim.Optimizer, length: int) -> Scheduled:
        """Hooks that choose masks over `length` steps of the optimizer."""
        treatment: Treatment = self._work.spec.treatment
        given = treatment.schedule
        plan = Plan(given.kind, given.dense, given.settle, given.every, given.decay)
        how = (treatment.pattern, treatment.rule, treatment.keep_dense)
        self._scheduled = Scheduled(model, optimizer, length, plan, *how)
        return self._scheduled

    def end(self, model: nn.Module) -> Masks:
        """The masks after training; a mean of checkpoints, whose masks differed, gets the last."""
        masks = self._scheduled.masks
        masks.apply(model)
        if self._work.accelerator.is_main_process:
            with whole(self._file) as part:  # before the phase counts as finished
                masks.save(part)
        return masks

    def remembered(self) -> Masks:
        """The masks of a phase that an earlier attempt finished."""
        return Masks.load(self._file)


def flips(rows: list[Row]) -> dict[str, Any]:
    """Mean share of positions that changed per choice of masks: whole phase, and its last tenth."""
    rates = [row["flip_rate"] for row in rows if "flip_rate" in row]
    last = rates[-max(1, len(rates) // 10) :]
    return {"flip_rate": sum(rates) / len(rates), "flip_rate_at_the_end": sum(last) / len(last)}
