"""The curves of a study of methods: the held-out score over steps, with a band over seeds."""

import json
from html import escape
from pathlib import Path

from workbench import dag, resolve
from workbench.record import Record, read
from workbench.report import figures
from workbench.report.wording import arrow, metric_title

Points = dict[int, list[float]]  # by step: the score of each seed


def section(study: str, scale: str, networks: list[str], seeds: list[int], root: Path) -> str:
    """The html of the curves of a study, empty where no curve has held-out scores.

    What is retrained begins where the dense training that it repeats ended, as it was pruned.
    """
    drawn: list[figures.Band] = []
    shown: Record | None = None
    plan = resolve.study(study)
    for method in plan.methods.values():
        found: Points = {}
        for seed in seeds if method.network in networks else []:
            folder = root / dag.cell_of(scale, method.network, method, seed).folder
            if _curve(folder):
                shown = read(folder / "record.json")
                _add(found, folder, shown)
        if found:
            dense = method.treatment in (plan.methods[key].treatment for key in plan.baseline)
            group = method.network if dense else method.treatment
            drawn.append((method.title, group, found))
    if shown is None:
        return ""
    title = f"{metric_title(shown.primary)} {arrow(shown.higher_is_better)} on held-out data"
    return (
        f'<figure><div class="wide">{figures.bands(title, drawn, shown.higher_is_better)}</div>'
        "<figcaption>Mean over seeds and, as a band, their range, in training. What is retrained "
        "begins where the dense training that it repeats ended, as it was pruned; study "
        f"{escape(study)}.</figcaption></figure>"
    )


def _add(points: Points, folder: Path, record: Record) -> None:
    """Put the scores of a record's curve behind those of the dense training that it repeats."""
    before, pruned = 0, folder.parent / "prune" / "record.json"
    if record.cell.stage == "retrain":
        before = max((step for step, _ in _curve(folder.parents[1] / "dense" / "dense")), default=0)
        if pruned.exists():
            points.setdefault(before, []).append(read(pruned).metrics[record.primary])
    for step, score in _curve(folder):
        points.setdefault(before + step, []).append(score)


def _curve(folder: Path) -> list[tuple[int, float]]:
    """The (steps done, score) of the last phase that was judged while it trained."""
    path = folder / "curve.jsonl"
    if not (path.exists() and (folder / "record.json").exists()):
        return []
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    judged = [row for row in rows if "held_out" in row and row["phase"] == rows[-1]["phase"]]
    return [(row["step"] + 1, row["held_out"]) for row in judged]
