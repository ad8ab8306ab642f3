"""What the benchmarks share: shapes of a csv file, timed one by one into a file of JSON."""

import csv
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from . import bench, build
from .candidates import OURS as OUR_CHOICE
from .seam import Plan
from .trials import AnyProblem, Operands, Trial, trials

# what our own times are called in the file, by what is asked
OURS = {
    "same result": "sparse24",
    "dense mode": "sparse24 dense mode",
    "untuned": "sparse24 untuned",  # by the cost model
}
Asked = dict[str, tuple[AnyProblem, tuple[str, ...]]]


def measured(
    asked: Asked, device: torch.device, label: Callable[[str, AnyProblem, Trial], str]
) -> dict[str, Any]:
    """The times of what is asked, in microseconds with their spread, and the clock."""
    found: dict[str, Any] = {}
    for name, (problem, backends) in asked.items():
        for trial in trials(problem, device, backends=backends, plans=name != "untuned"):
            found[label(name, problem, trial)] = _told(trial)
    load = bench.under_load(Operands(asked["untuned"][0], device).calls(OUR_CHOICE))
    return {"found": found} | load


def sweep(
    what: str,
    keys: Sequence[tuple],
    named: tuple[str, ...],
    row: Callable[..., dict[str, Any]],
    out: Path,
    about: dict[str, Any],
) -> dict[str, Any]:
    """Measure what the file does not hold yet, of the same device and kernels, and return it.

    A row is `row(*key, device)`, and says its key by the entries `named`.
    """
    facts = bench.facts() | {"kernels": build.digest(build.compiler())}
    told = {"what": what, "facts": facts, "about": about}
    told["method"] = (
        f"CUDA graphs over operands rotated through {bench.ROTATE_BYTES >> 20} MiB, random "
        f"values, median of {bench.REPEATS} with least and most; the best of every algorithm"
    )
    rows = []
    if out.exists():
        before = json.loads(out.read_text())
        rows = before["rows"] if before["facts"] == facts else []
    done = {tuple(r[name] for name in named) for r in rows}
    device = torch.device("cuda", torch.cuda.current_device())
    for key in keys:
        if key in done:
            continue
        rows.append(row(*key, device))
        torch.cuda.empty_cache()
        _write(out, told | {"rows": rows})
        print(_line(rows[-1], named), flush=True)
    return told | {"rows": rows}


def rows_of(path: Path, only: list[str]) -> list[dict[str, str]]:
    """The rows of a csv file with the column group; of some groups only, if named."""
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    known = list(dict.fromkeys(r["group"] for r in rows))
    for name in only:
        if name not in known:
            raise bench.BenchError(f"{path.name} has no group {name!r}; known: {', '.join(known)}")
    return [r for r in rows if not only or r["group"] in only]


def _told(trial: Trial) -> dict[str, Any]:
    if trial.timing is None:
        return {"reason": trial.reason}
    told = {name: round(value, 3) for name, value in trial.timing._asdict().items()}
    if trial.choice.backend == "cusparselt":
        told["algorithm"] = trial.choice.number
    elif trial.choice.backend == "sparse24" and trial.choice.number >= 0:
        told["plan"] = Plan.of(trial.choice.number)._asdict()
    return told


def _line(row: dict[str, Any], named: tuple[str, ...]) -> str:
    times = ", ".join(
        f"{name} {told['median_us']:.1f}" for name, told in row["found"].items() if len(told) > 1
    )
    *shape, dtype = (str(row[name]) for name in named)
    return f"{'x'.join(shape)} {dtype}: {times}"


def _write(out: Path, told: dict[str, Any]) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    part = out.with_suffix(".part")
    part.write_text(json.dumps(told, indent=1))
    part.replace(out)
