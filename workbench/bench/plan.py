"""Which networks are measured, at which batches and by whom: experiments/bench/network.csv."""

from collections.abc import Collection, Sequence
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
    only: Sequence[str], precisions: str, batches: Sequence[int], candidates: str = ""
) -> list[tuple[str, int, str]]:
    """The keys of the plan's groups, batches and candidates; SpecError for one it does not have.

    Batches, precisions and candidates that are named come in the order in which they are.
    """
    wanted = _candidates(precisions, candidates)
    chosen = plan(only)
    sizes = sorted({each.batch for each in chosen})
    for batch in batches:
        if batch not in sizes:
            raise SpecError(f"batch {batch}: {PLAN.name} has {', '.join(map(str, sizes))} there")
    if batches:
        chosen = [each for size in dict.fromkeys(batches) for each in chosen if each.batch == size]
    return [
        (each.network, each.batch, name)
        for each in chosen
        for name in wanted
        if each.autotune or not CANDIDATES[name].lengthy
    ]


def _candidates(precisions: str, named: str) -> list[str]:
    wanted = precisions.split(",") if precisions else list(PRECISIONS)
    for name in wanted:
        _refuse_unknown("precision", name, PRECISIONS)
    if not named:
        return [
            name
            for precision in dict.fromkeys(wanted)
            for name, candidate in CANDIDATES.items()
            if candidate.precision == precision
        ]
    names = list(dict.fromkeys(named.split(",")))
    for name in names:
        _refuse_unknown("candidate", name, CANDIDATES)
        if CANDIDATES[name].precision not in wanted:
            raise SpecError(
                f"candidate {name!r} is of {CANDIDATES[name].precision}, and asked for is "
                f"{precisions}: leave the precisions out, or add it"
            )
    return names


def _refuse_unknown(what: str, name: str, known: Collection[str]) -> None:
    if name not in known:
        near = nearest(name, list(known))
        raise SpecError(f"{what} {name!r}{near}; known: {', '.join(known)}")


def plan(only: Sequence[str] = ()) -> list[Planned]:
    """The networks and batches of some groups, or of all; BenchError for an unknown group."""
    rows = sweeps.rows_of(PLAN, only)
    return [Planned(row["network"], int(row["batch"]), row["autotune"] == "yes") for row in rows]
