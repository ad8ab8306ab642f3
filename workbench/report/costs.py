"""What the rows cost: time and memory of the stages, and whether all rows fit into the hours."""

from collections.abc import Iterable
from pathlib import Path

from workbench import dag, resolve
from workbench.record import Cell, Record
from workbench.report import collect, compare
from workbench.report.network import Network
from workbench.report.render import grid
from workbench.report.wording import DASH, column_title, duration

BUDGET_HOURS = 3  # of one GPU, for the talk's rows
BUDGET_SEEDS = 3
ROW = "accuracy"  # the study whose columns are a row
_RULE = (
    '<ul class="notes"><li>Mean over seeds of the time of the whole stage, evaluation included; '
    "highest peak memory.</li></ul>"
)


def stages(networks: list[Network], columns: compare.Columns) -> str:
    """The html of the mean time and peak memory of each column's stage, if there are columns."""
    rows: list[list[str]] = []
    for network in networks:
        cells = [_cost(network.records(column)) for column in columns.values()]
        rows.append([dag.spec_of(network.name, "dense", network.scale).title, *cells])
    header = ["Network", *(column_title(key) for key in columns)]
    return grid(header, rows, "costs") + _RULE if rows else ""


def budget(scale: str, seeds: list[int], root: Path) -> str:
    """The html of the minutes of a row by builder, and of all the talk's rows together.

    A row without a whole set of records counts as the mean of its builder's, or of all.
    """
    talks = dag.study_networks(ROW, resolve.names("networks"))
    measured = {n: row_seconds(n, scale, seeds, root) for n in talks}
    known = {network: seconds for network, seconds in measured.items() if seconds is not None}
    if not known:
        return '<p class="muted">No row has a record of every stage yet.</p>'
    by_builder: dict[str, list[str]] = {}
    for network in talks:
        by_builder.setdefault(dag.spec_of(network, "dense", scale).model.build, []).append(network)
    rows, total = [], 0.0
    for builder, names in by_builder.items():
        own = [known[name] for name in names if name in known]
        each = _mean(own or known.values())
        whole = (sum(own) + each * (len(names) - len(own))) * BUDGET_SEEDS
        total += whole
        shown = f"{each / 60:.1f}" + ("" if own else " (mean of all)")
        rows.append([builder, str(len(names)), str(len(own)), shown, f"{whole / 60:.0f}"])
    rows.append(["all", str(len(talks)), str(len(known)), "", f"{total / 60:.0f}"])
    header = ["Builder", "Rows", "Measured", "Minutes a row and seed", "Minutes of 3 seeds"]
    return grid(header, rows, "costs") + _verdict(total, len(talks), scale)


def row_seconds(network: str, scale: str, seeds: list[int], root: Path) -> float | None:
    """The mean seconds of all stages of a row of one seed; None if a stage has no record."""
    total = 0.0
    by_stage: dict[tuple[str, str], list[float]] = {}
    for step in _steps(network, scale, seeds):
        by_stage.setdefault((step.treatment, step.stage), [])
        found = collect.records([step], root)
        by_stage[step.treatment, step.stage] += [record.seconds for record in found.values()]
    for seconds in by_stage.values():
        if not seconds:
            return None
        total += _mean(seconds)
    return total


def _steps(network: str, scale: str, seeds: list[int]) -> list[Cell]:
    ends = dag.study_cells(ROW, scale, [network], seeds)
    return list(dict.fromkeys(step for end in ends for step in dag.chain(end)))


def _verdict(total: float, count: int, scale: str) -> str:
    hours = total / 3600
    unit = "GPU hours" if dag.limits(scale)["gpu"] else "hours"
    sharing = max(1.0, hours / BUDGET_HOURS)
    text = (
        f"{count} rows x {BUDGET_SEEDS} seeds take {hours:.1f} {unit} one after another. They fit "
        f"into {BUDGET_HOURS} if {sharing:.1f} runs at a time do not slow each other down. Rows "
        "without a whole set of records count as the mean of their builder, or of all."
    )
    return f'<ul class="notes"><li>{text}</li></ul>'


def _cost(records: list[Record]) -> str:
    if not records:
        return DASH
    seconds = _mean(record.seconds for record in records)
    peak = max(record.peak_memory_mb for record in records)
    return f"{duration(seconds)} · {peak / 1024:.1f} GB"


def _mean(values: Iterable[float]) -> float:
    found = list(values)
    return sum(found) / len(found)
