"""The table and the plot of the GEMM benchmark, from its measurements alone."""

import csv
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib as mpl
import pandas as pd

from workbench.report.cells import Table, Text
from workbench.report.measurements import (
    ceilings,
    cell,
    conditions,
    fastest,
    left_out,
    library,
    measurement,
    over_library,
)
from workbench.report.style import MUTED, PALETTE, STYLE, panel, write_svg
from workbench.resolve import EXPERIMENTS

COLUMNS = (
    "m", "n", "k", "dtype", "dense_us", "dense_backend", "cusparselt_us", "sparse24_us",
    "speedup_vs_dense", "speedup_vs_cusparselt", "share_of_ceiling", "talk",
    "library_us", "library",
)  # fmt: skip
HEADER = (
    "m x n x k", "Type", "Dense", "cuSPARSELt", "sparse24", "Speedup", "Over cuSPARSELt",
    "Of the ceiling", "Talk", "Library", "Over it",
)  # fmt: skip


def gemm_table(measurements: Path) -> Table:
    """A row per shape and type; RecordError where the folder lacks the measurements.

    Dense is the fastest of the libraries and of our kernel's dense mode; ours the best plan.
    """
    told, talk = measurement(measurements, "gemm"), _talk()
    best, card = ceilings(measurements)
    frame = pd.DataFrame([_numbers(row, best, talk) for row in told["rows"]], columns=COLUMNS)
    facts = told["facts"]
    notes = [
        ("", told["method"] + "."),
        ("", "m: output features, n: tokens, k: input features. Times in microseconds."),
        ("", "Dense is the fastest of the libraries and of our kernel's dense mode, as named."),
        ("", "Library: the fastest dense one, without our dense mode."),
        *left_out(told["rows"]),
        ("", f"Ceiling: the sparse instructions alone, measured on {card}."),
        ("", "Talk: the speedup printed there, on an A100 (slide of BERT-Large's GEMMs)."),
        ("", conditions(told)),
    ]
    return Table(
        name="gemm",
        title=f"GEMMs, 2:4 against dense, on {facts['device']}",
        header=list(HEADER),
        rows=[_texts(row) for row in frame.to_dict("records")],
        notes=notes,
        numbers=frame,
    )


@mpl.rc_context(STYLE)
def gemm_plot(frame: pd.DataFrame, path: Path) -> None:
    """Write the speedup over dense against the size of the product, a color per type, as svg."""
    figure, axes = panel(7.2, 3.6)
    for color, (dtype, rows) in zip(PALETTE, frame.groupby("dtype", sort=False), strict=False):
        work = 2e-9 * rows.m * rows.n * rows.k
        axes.plot(work, rows.speedup_vs_dense, "o", color=color, label=f"sparse24 {dtype}", ms=4)
        theirs = rows.dense_us / rows.cusparselt_us
        axes.plot(work, theirs, "x", color=color, label=f"cuSPARSELt {dtype}", ms=4, alpha=0.6)
    axes.axhline(1, color=MUTED, linewidth=1)
    axes.set(xscale="log", xlabel="GFLOP of the dense product", ylabel="speedup over dense")
    low, high = axes.get_ylim()
    axes.set_ylim(top=high + (high - low) / 4)  # room for the legend
    axes.legend(ncols=3)
    write_svg(figure, path)


def _numbers(row: dict[str, Any], best: dict[str, float], talk: dict) -> dict[str, Any]:
    dense_us, backend, ours = fastest(row)
    theirs = row["found"].get("cusparselt", {}).get("median_us") or float("nan")
    m, n, k, dtype = (row[name] for name in ("m", "n", "k", "dtype"))
    tflops = 2e-6 * m * n * k / ours
    return {
        "m": m, "n": n, "k": k, "dtype": dtype,
        "dense_us": dense_us,
        "dense_backend": backend,
        "cusparselt_us": theirs,
        "sparse24_us": ours,
        "speedup_vs_dense": dense_us / ours,
        "speedup_vs_cusparselt": theirs / ours,
        "share_of_ceiling": tflops / best.get(dtype, float("nan")),
        "talk": talk.get((m, n, k)) if dtype == "float16" else None,
        **library(row),
    }  # fmt: skip


def _texts(row: dict[str, Any]) -> list[Text]:
    shown = partial(cell, row)
    dense = Text(shown("dense_us", ".1f"), metric=row["dense_backend"] or "")
    return [
        Text(f"{row['m']} x {row['n']} x {row['k']}"),
        Text(row["dtype"]),
        dense,
        Text(shown("cusparselt_us", ".1f")),
        Text(shown("sparse24_us", ".1f")),
        Text(shown("speedup_vs_dense", ".2f")),
        Text(shown("speedup_vs_cusparselt", ".2f")),
        Text(shown("share_of_ceiling", ".0%")),
        Text(shown("talk", ".2f")),
        *over_library(row),
    ]


def _talk() -> dict[tuple[int, int, int], float]:
    with (EXPERIMENTS / "talk" / "gemm.csv").open(newline="") as file:
        return {
            (int(row["M"]), int(row["N"]), int(row["K"])): float(row["speedup_sparse_vs_dense"])
            for row in csv.DictReader(file)
        }
