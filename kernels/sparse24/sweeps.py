"""A benchmark: the shapes of a csv file, each timed in some types, into one file of JSON."""

import argparse
import csv
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from . import bench, build
from .candidates import OURS as OUR_CHOICE
from .seam import ELEMENTS, Plan
from .trials import AnyProblem, Asked, Operands, Trial, trials_of

# what our own times are called in the file, by what is asked
OURS = {
    "same result": "sparse24",
    "dense mode": "sparse24 dense mode",
    "untuned": "sparse24 untuned",  # by the cost model
}
METHOD = (
    f"CUDA graphs over operands rotated through {bench.ROTATE_BYTES >> 20} MiB, random "
    f"values, median of {bench.REPEATS} with least and most, taken in turn with the others'; "
    "the best of every algorithm that finishes"
)


class Benchmark(NamedTuple):
    """What is measured of each shape and type, and what the times are called in the file."""

    what: str
    shape: type  # a NamedTuple of sizes, the columns of the csv file
    dtypes: tuple[str, ...]  # those that are measured unless others are asked for
    problems: Callable[[Any, str], dict[str, Asked]]  # of a shape and a type, by name
    label: Callable[[str, AnyProblem, Trial], str]  # of a problem's name, itself and a trial

    def shapes_of(self, path: Path, only: Sequence[str]) -> list[Any]:
        """The shapes of a csv file with the column group too; of some groups only, if named."""
        sizes = [[int(row[name]) for name in self.shape._fields] for row in rows_of(path, only)]
        return list(dict.fromkeys(self.shape(*each) for each in sizes))

    def sweep(
        self, shapes: list[Any], dtypes: Sequence[str], out: Path, about: dict[str, Any]
    ) -> dict[str, Any]:
        """Measure what the file does not hold yet, of the same device and kernels, and return it.

        It is written after each shape and type, so a run that was cut off goes on where it stopped.
        """
        _refuse_unknown(dtypes)
        told = {"what": self.what, "about": about, "method": METHOD}
        device = torch.device("cuda", torch.cuda.current_device())
        keys = [(*shape, dtype) for shape in shapes for dtype in dtypes]

        def row(*key: Any) -> dict[str, Any]:
            *sizes, dtype = key
            return self.row(self.shape(*sizes), dtype, device)

        return resumed(keys, (*self.shape._fields, "dtype"), row, out, told)

    def row(self, shape: Any, dtype: str, device: torch.device) -> dict[str, Any]:
        """The times of a shape and type, in microseconds with their spread, and the clock."""
        asked, found = self.problems(shape, dtype), {}
        for (name, (problem, *_)), results in zip(
            asked.items(), trials_of(list(asked.values()), device), strict=True
        ):
            found |= {self.label(name, problem, trial): _told(trial) for trial in results}
        load = bench.under_load(Operands(asked["untuned"].problem, device).calls(OUR_CHOICE))
        return shape._asdict() | {"dtype": dtype, "found": found} | load

    def main(self, description: str) -> None:
        """Measure the shapes of a file, as the command line says."""
        parser = argparse.ArgumentParser(description=description)
        parser.add_argument("shapes", type=Path)
        parser.add_argument("out", type=Path)
        parser.add_argument("--only", action="append", default=[], help="a group; repeatable")
        parser.add_argument("--dtypes", default=",".join(self.dtypes))
        given = parser.parse_args()
        bench.require_gpu()
        self.sweep(self.shapes_of(given.shapes, given.only), given.dtypes.split(","), given.out, {})


def resumed(
    keys: Sequence[tuple],
    named: Sequence[str],
    row: Callable[..., dict[str, Any]],
    out: Path,
    told: dict[str, Any],
    facts: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Measure each key by `row(*key)` unless the file holds it, and return what the file then says.

    A row has its key under the names `named`. The file is dropped where it is of another device or
    library (or of other `facts` that a time depends on). A row of other kernels stays until its key
    is asked for, and is measured anew then; the file is written after each row.
    """
    kernels = build.digest(build.compiler())
    told, rows = {**told, "facts": bench.facts() | (facts or {})}, {}
    if out.exists():
        before = json.loads(out.read_text())
        if before["facts"] == told["facts"]:
            rows = {tuple(each[name] for name in named): each for each in before["rows"]}
    for key in keys:
        if key in rows and rows[key].get("kernels") == kernels:
            continue
        rows[key] = row(*key) | {"kernels": kernels}
        torch.cuda.empty_cache()
        _write(out, told | {"rows": list(rows.values())})
        print(_line(rows[key], named), flush=True)
    return told | {"rows": list(rows.values())}


def rows_of(path: Path, only: Sequence[str]) -> list[dict[str, str]]:
    """The rows of a csv file with the column group; of some groups only, if named."""
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    known = list(dict.fromkeys(r["group"] for r in rows))
    for name in only:
        if name not in known:
            raise bench.BenchError(f"{path.name} has no group {name!r}; known: {', '.join(known)}")
    return [r for r in rows if not only or r["group"] in only]


def _refuse_unknown(dtypes: Sequence[str]) -> None:
    known = [str(dtype).removeprefix("torch.") for dtype in ELEMENTS]
    for name in dtypes:
        if name not in known:
            raise bench.BenchError(f"no products of type {name!r}; known: {', '.join(known)}")


def _told(trial: Trial) -> dict[str, Any]:
    if trial.timing is None:
        return {"reason": trial.reason}
    told = {name: round(value, 3) for name, value in trial.timing._asdict().items()}
    if trial.choice.backend == "cusparselt":
        told["algorithm"] = trial.choice.number
        told["left_out"] = trial.reason  # of the other numbers, and why
    elif trial.choice.backend == "sparse24" and trial.choice.number >= 0:
        told["plan"] = Plan.of(trial.choice.number)._asdict()
    return told


def _line(row: dict[str, Any], named: Sequence[str]) -> str:
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
