"""Which networks are measured, at which batches and by whom: experiments/bench/network.csv."""

from collections.abc import Sequence
from typing import NamedTuple

from sparse24 import sweeps
from workbench.bench.candidates import CANDIDATES
from workbench.resolve import EXPERIMENTS, SpecError, nearest

PLAN = EXPERIMENTS / "bench" / "network.csv"
PRECISIONS = ("fp16", "int8")


class Planned(NamedTuple):
    """A network at a batch, and whether its dense opponents are tuned at length."""

    network: str
    batch: int
    autotune: bool


def planned(
    only: Sequence[str], precisions: str, batches: Sequence[int]
) -> list[tuple[str, int, str]]:
    """The keys of the plan's groups, precisions and batches; SpecError for one it does not have."""
    wanted = precisions.split(",") if precisions else list(PRECISIONS)
    for name in wanted:
        if name not in PRECISIONS:
            raise SpecError(
                f"precision {name!r}{nearest(name, list(PRECISIONS))}; known: "
                f"{', '.join(PRECISIONS)}"
            )
    chosen = plan(only)
    sizes = sorted({each.batch for each in chosen})
    for batch in batches:
        if batch not in sizes:
            raise SpecError(f"batch {batch}: {PLAN.name} has {', '.join(map(str, sizes))} there")
    return [
        (each.network, each.batch, name)
        for each in chosen
        if not batches or each.batch in batches
        for name, candidate in CANDIDATES.items()
        if candidate.precision in wanted
    ]


def plan(only: Sequence[str] = ()) -> list[Planned]:
    """The networks and batches of some groups, or of all; BenchError for an unknown group."""
    rows = sweeps.rows_of(PLAN, only)
    return [Planned(row["network"], int(row["batch"]), row["autotune"] == "yes") for row in rows]
