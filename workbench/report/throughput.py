"""The talk's table of tensor-core throughput beside ours, from measurements alone."""

import csv
from pathlib import Path
from typing import Any

import pandas as pd

from workbench.report.cells import Table, Text
from workbench.report.measurements import conditions, measurement
from workbench.report.wording import DASH
from workbench.resolve import EXPERIMENTS

COLUMNS = (
    "input_operands", "accumulator", "dense_tops", "dense_vs_ffma", "sparse_tops",
    "sparse_vs_ffma", "talk_dense_vs_ffma", "talk_sparse_vs_ffma",
)  # fmt: skip


def throughput_table(measurements: Path) -> Table:
    """A row per pair of operand and accumulator: TFLOP/s and multiples of dense FP32."""
    told = measurement(measurements, "throughput")
    ffma = next(r["dense_tops"] for r in told["rows"] if r["input_operands"] == "FP32")
    frame = pd.DataFrame([_numbers(row, ffma) for row in told["rows"]], columns=COLUMNS)
    facts = told["facts"]
    return Table(
        name="throughput",
        title=f"Throughput of products by type, {facts['device']} beside the talk's A100",
        header=["Operands", "Accumulator", "Dense", "Over FP32", "2:4", "Over FP32", "Talk, dense",
                "Talk, 2:4"],
        rows=[_texts(row) for row in frame.to_dict("records")],
        notes=[
            ("", f"{told['what']}; the library's dense product, our 2:4 one."),
            ("", "The talk's numbers are peaks of the A100; ours are measured under power limits."),
            ("", conditions(told)),
        ],
        numbers=frame,
    )  # fmt: skip


def _numbers(row: dict[str, Any], ffma: float) -> dict[str, Any]:
    printed = _talk().get((row["input_operands"], row["accumulator"]), {})
    dense, sparse = row["dense_tops"], row["sparse_tops"]
    return {
        **{name: row[name] for name in COLUMNS[:3]},
        "dense_vs_ffma": dense / ffma,
        "sparse_tops": sparse,
        "sparse_vs_ffma": sparse / ffma if sparse else None,
        "talk_dense_vs_ffma": printed.get("dense_vs_ffma_printed") or None,
        "talk_sparse_vs_ffma": printed.get("sparse_vs_ffma_printed") or None,
    }


def _texts(row: dict[str, Any]) -> list[Text]:
    def shown(name: str, form: str) -> Text:
        value = row[name]
        if value is None or value != value:
            return Text(DASH)
        return Text(value if isinstance(value, str) else format(value, form))

    forms = {"dense_tops": ".0f", "sparse_tops": ".0f"}
    return [shown(name, forms.get(name, ".1f")) for name in COLUMNS]


def _talk() -> dict[tuple[str, str], dict[str, str]]:
    with (EXPERIMENTS / "talk" / "tensor_core_throughput.csv").open(newline="") as file:
        return {(row["input_operands"], row["accumulator"]): row for row in csv.DictReader(file)}
