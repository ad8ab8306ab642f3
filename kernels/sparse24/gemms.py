"""The GEMM benchmark: `python -m sparse24.gemms SHAPES.csv OUT.json`, with torch alone.

For each shape (m out, n tokens, k in) and type: the dense library, cuSPARSELt by its best
algorithm, and ours by its best plan, by the cost model's and in dense mode, each with the same
result: row-major, with bias in 16 bits, dequantized per channel to float16 from int8. What is
measured is written after each shape, so a run that was cut off goes on where it stopped.
"""

import argparse
import csv
import json
from pathlib import Path
from typing import Any

import torch

from . import bench, build
from .candidates import OURS
from .seam import TYPES, Plan
from .trials import Operands, Problem, Trial, trials

DTYPES = ("float16", "int8", "float8_e4m3fn")


def problems(m: int, n: int, k: int, dtype: str) -> dict[str, tuple[Problem, tuple[str, ...]]]:
    """What is measured of a shape, by name: a problem and the backends that are asked."""
    kind = getattr(torch, dtype)
    element, half = TYPES[kind], TYPES[torch.float16]
    full = Problem(n, m, k, element, half)
    full = full._replace(scale=True) if dtype == "int8" else full
    full = full._replace(bias=True) if kind.itemsize == 2 else full
    asked = {
        "same result": (full, ("sparse24", "cusparselt", "dense")),
        "dense mode": (full._replace(sparse=False), ("sparse24",)),
        "untuned": (full, ("sparse24",)),
    }
    if dtype == "int8":  # the library's own result, int32 and nothing behind it
        asked["bare sums"] = (Problem(n, m, k, element, TYPES[torch.int32]), ("dense",))
    return asked


LIBRARY = {
    "float16": "F.linear (cuBLAS)",
    "bfloat16": "F.linear (cuBLAS)",
    "int8": "torch._int_mm, dequantized by torch",
    "float8_e4m3fn": "torch._scaled_mm",
}


def row(m: int, n: int, k: int, dtype: str, device: torch.device) -> dict[str, Any]:
    """The times of one shape and type, in microseconds with their spread, and the clock."""
    found: dict[str, Any] = {}
    for name, (problem, backends) in problems(m, n, k, dtype).items():
        plans = name != "untuned"
        for trial in trials(problem, device, backends=backends, plans=plans):
            found[_label(name, trial, dtype)] = _told(trial)
    load = bench.under_load(Operands(problems(m, n, k, dtype)["untuned"][0], device).calls(OURS))
    return {"m": m, "n": n, "k": k, "dtype": dtype, "found": found} | load


def sweep(
    shapes: list[tuple[int, int, int]], dtypes: tuple[str, ...], out: Path, about: dict[str, Any]
) -> dict[str, Any]:
    """Measure what the file does not hold yet, of the same device and kernels, and return it."""
    facts = bench.facts() | {"kernels": build.digest(build.compiler())}
    told = {"what": "GEMMs, 2:4 and dense, microseconds", "facts": facts, "about": about}
    told["method"] = (
        f"CUDA graphs over operands rotated through {bench.ROTATE_BYTES >> 20} MiB, random "
        f"values, median of {bench.REPEATS} with least and most; the best of every algorithm"
    )
    rows = []
    if out.exists():
        before = json.loads(out.read_text())
        rows = before["rows"] if before["facts"] == facts else []
    done = {(r["m"], r["n"], r["k"], r["dtype"]) for r in rows}
    device = torch.device("cuda", torch.cuda.current_device())
    for shape in shapes:
        for dtype in dtypes:
            if (*shape, dtype) in done:
                continue
            rows.append(row(*shape, dtype, device))
            torch.cuda.empty_cache()
            _write(out, told | {"rows": rows})
            print(_line(rows[-1]), flush=True)
    return told | {"rows": rows}


def shapes_of(path: Path, only: list[str]) -> list[tuple[int, int, int]]:
    """The shapes of a csv file with the columns group, m, n, k; of some groups only, if named."""
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    known = list(dict.fromkeys(r["group"] for r in rows))
    for name in only:
        if name not in known:
            raise bench.BenchError(f"{path.name} has no group {name!r}; known: {', '.join(known)}")
    chosen = [r for r in rows if not only or r["group"] in only]
    return list(dict.fromkeys((int(r["m"]), int(r["n"]), int(r["k"])) for r in chosen))


def _label(name: str, trial: Trial, dtype: str) -> str:
    backend = trial.choice.backend
    if backend == "dense":
        return "torch._int_mm, int32 sums" if name == "bare sums" else LIBRARY[dtype]
    if backend == "cusparselt":
        return "cusparselt"
    return {"same result": "sparse24"}.get(name, f"sparse24 {name}")


def _told(trial: Trial) -> dict[str, Any]:
    if trial.timing is None:
        return {"reason": trial.reason}
    told = {name: round(value, 3) for name, value in trial.timing._asdict().items()}
    if trial.choice.backend == "cusparselt":
        told["algorithm"] = trial.choice.number
    elif trial.choice.backend == "sparse24" and trial.choice.number >= 0:
        told["plan"] = Plan.of(trial.choice.number)._asdict()
    return told


def _line(row: dict[str, Any]) -> str:
    times = ", ".join(
        f"{name} {told['median_us']:.1f}" for name, told in row["found"].items() if len(told) > 1
    )
    return f"{row['m']}x{row['n']}x{row['k']} {row['dtype']}: {times}"


def _write(out: Path, told: dict[str, Any]) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    part = out.with_suffix(".part")
    part.write_text(json.dumps(told, indent=1))
    part.replace(out)


def main() -> None:
    """Measure the shapes of a file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("shapes", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--only", action="append", default=[], help="a group; repeatable")
    parser.add_argument("--dtypes", default=",".join(DTYPES))
    given = parser.parse_args()
    bench.require_gpu()
    sweep(shapes_of(given.shapes, given.only), tuple(given.dtypes.split(",")), given.out, {})


if __name__ == "__main__":
    main()
