"""Learning rate of a step: warm-up, then a shape over the length of the phase."""

import math

from workbench.durations import steps
from workbench.sections import Schedule, Train


def learning_rate(train: Train, step: int, length: int, steps_per_epoch: int) -> float:
    """The rate of step 0..length-1; `lr` scales linearly from `lr_batch` to the batch."""
    optimizer = train.optimizer
    peak = optimizer.lr * train.batch / (optimizer.lr_batch or train.batch)
    warmup = steps(train.schedule.warmup, steps_per_epoch, length)
    if step < warmup:
        share = train.schedule.warmup_from
        if train.schedule.warmup_shape == "exponential":
            return peak * share ** (1 - (step + 1) / warmup)
        lowest = peak * share  # in this order a warm-up from 0 keeps the bits of older records
        return lowest + (peak - lowest) * (step + 1) / warmup
    return peak * _shape(train.schedule, step, length, warmup)


def _shape(schedule: Schedule, step: int, length: int, warmup: int) -> float:
    done = (step - warmup) / max(1, length - warmup)
    if schedule.shape == "step":
        passed = sum(step >= share * length for share in schedule.milestones)
        return schedule.factor**passed
    if schedule.shape == "exponential":
        return schedule.factor**done
    if schedule.shape == "cosine":
        return (1 + math.cos(math.pi * done)) / 2
    if schedule.shape == "linear":
        return 1 - done
    if schedule.shape == "inverse_sqrt":
        return math.sqrt(max(1, warmup) / max(1, step + 1))
    return 1.0
