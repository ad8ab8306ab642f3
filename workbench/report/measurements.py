"""What the benchmarks measured, as their tables read it."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pandas as pd

from workbench import resolve
from workbench.record import RecordError
from workbench.report.cells import Text
from workbench.report.wording import DASH

OURS = ("sparse24", "sparse24 untuned")
OUR_DENSE = "sparse24 dense mode"


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


def conditions(told: dict[str, Any]) -> str:
    """What times depend on beside the device, which the title names; kernels with their rows."""
    facts = [f"{name} {value}" for name, value in told["facts"].items() if name != "device"]
    kernels = Counter(row["kernels"] for row in told["rows"] if "kernels" in row)
    for digest, count in kernels.most_common():
        facts.append(f"kernels {digest}" + (f" ({count} rows)" if len(kernels) > 1 else ""))
    return ", ".join(facts)


def fastest(row: dict[str, Any]) -> tuple[float, str | None, float]:
    """The time and the name of the best dense candidate of a row, and our time; NaN for none."""
    ours = row["found"].get("sparse24", {}).get("median_us")
    return *_best(row, (*OURS, "cusparselt")), ours or float("nan")


def library(row: dict[str, Any]) -> dict[str, Any]:
    """The same of the libraries alone, without our kernel's dense mode, as columns."""
    best, name = _best(row, (*OURS, OUR_DENSE, "cusparselt"))
    return {"library_us": best, "library": name}


def over_library(row: dict[str, Any]) -> list[Text]:
    """The cells of those columns: the library, and our speedup over it."""
    speedup = row | {"speedup": row["library_us"] / row["sparse24_us"]}
    best = Text(cell(row, "library_us", ".1f"), metric=cell(row, "library", "").strip(DASH))
    return [best, Text(cell(speedup, "speedup", ".2f"))]


def left_out(rows: list[dict[str, Any]]) -> list[tuple[str, str]]:
    """A note for each type of whose algorithms cuSPARSELt was not asked for all."""
    found = {}
    for row in rows:
        told = row["found"].get("cusparselt", {})
        if "left_out" in told and "median_us" in told:
            found[row["dtype"]] = told["left_out"].split(": CUDA error")[0]
    return [
        ("", f"cuSPARSELt's algorithms left out in {name}: {why}.") for name, why in found.items()
    ]


def _best(row: dict[str, Any], without: tuple[str, ...]) -> tuple[float, str | None]:
    times = {name: told.get("median_us") for name, told in row["found"].items()}
    dense = {name: time for name, time in times.items() if time and name not in without}
    name = min(dense, key=dense.__getitem__, default=None)
    return dense.get(name, float("nan")), name


def cell(row: dict[str, Any], name: str, form: str) -> str:
    """A number of a row in a format, a dash where it is missing."""
    return DASH if pd.isna(row[name]) else format(row[name], form)
