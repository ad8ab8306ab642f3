"""Which share of a pass each kind of kernel takes, by the kernels' names."""

import csv
import re
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from typing import Any

from workbench.resolve import EXPERIMENTS

FILE = EXPERIMENTS / "bench" / "kernel_kinds.csv"
OTHER = "other"


def shares(kernels: Iterable[tuple[str, float]]) -> dict[str, float]:
    """The share of the time by kind, of kernels with their times; the largest first."""
    sums: dict[str, float] = {}
    for name, time in kernels:
        kind = kind_of(name)
        sums[kind] = sums.get(kind, 0.0) + time
    total = sum(sums.values())
    if not total:
        return {}
    return {kind: time / total for kind, time in sorted(sums.items(), key=lambda pair: -pair[1])}


def kind_of(name: str) -> str:
    """The kind of the first pattern of the table that the name of a kernel has in it."""
    return next((kind for kind, pattern in patterns() if pattern.search(name)), OTHER)


@cache
def patterns(path: Path = FILE) -> tuple[tuple[str, re.Pattern[str]], ...]:
    """Kinds and patterns in the order of the table."""
    with path.open(newline="") as file:
        return tuple(
            (row["kind"], re.compile(row["pattern"], re.IGNORECASE)) for row in csv.DictReader(file)
        )


def profiled(call: Callable[[], Any]) -> list[tuple[str, float]]:
    """The kernels of one call and their microseconds, by torch.profiler."""
    import torch
    from torch.profiler import ProfilerActivity, profile

    call()
    torch.cuda.synchronize()
    # without the CPU's activity the profiler of some versions drops the GPU's
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as seen:
        call()
        torch.cuda.synchronize()
    return [
        (event.key, event.self_device_time_total)
        for event in seen.key_averages()
        if event.device_type == torch.autograd.DeviceType.CUDA
    ]
