"""What the benchmarks measured, as their tables read it."""

import json
from pathlib import Path
from typing import Any

import pandas as pd

from workbench import resolve
from workbench.record import RecordError
from workbench.report.wording import DASH

OURS = ("sparse24", "sparse24 untuned")


def measurement(folder: Path, name: str) -> dict[str, Any]:
    """What a benchmark wrote; RecordError if it has not run."""
    path = folder / f"{name}.json"
    if not path.exists():
        raise RecordError(f"{path}: no such measurement; run `workbench bench {name}` on a GPU")
    return json.loads(path.read_text())


def ceilings(folder: Path) -> tuple[dict[str, float], str]:
    """By type the TFLOP/s that the sparse instructions alone reach, and the device's name."""
    told, best = measurement(folder, "wgmma_ceiling"), {}
    for row in told["rows"]:
        best[row["dtype"]] = max(best.get(row["dtype"], 0.0), row["sparse"])
    return best, told["facts"]["device"]


def memory_tb(device: str) -> float:
    """TB/s of the memory of a device named so in records; NaN if bench/devices.yaml lacks it."""
    cards = resolve.read_yaml(resolve.EXPERIMENTS / "bench" / "devices.yaml").values()
    return next((c["memory_tb"] for c in cards if device.startswith(c["records"])), float("nan"))


def conditions(facts: dict[str, Any]) -> str:
    """What a time depends on beside the device, which the title names."""
    return ", ".join(f"{name} {value}" for name, value in facts.items() if name != "device")


def fastest(row: dict[str, Any]) -> tuple[float, str | None, float]:
    """The time and the name of the best dense candidate of a row, and our time; NaN for none."""
    times = {name: told.get("median_us") for name, told in row["found"].items()}
    dense = {n: t for n, t in times.items() if t and n not in (*OURS, "cusparselt")}
    backend = min(dense, key=dense.__getitem__, default=None)
    nan = float("nan")
    return dense[backend] if backend else nan, backend, times.get("sparse24") or nan


def cell(row: dict[str, Any], name: str, form: str) -> str:
    """A number of a row in a format, a dash where it is missing."""
    return DASH if pd.isna(row[name]) else format(row[name], form)
