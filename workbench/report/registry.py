"""The claim registry: every number that the talk prints as data, recomputed where it can be."""

import csv
from collections.abc import Iterator
from dataclasses import dataclass

from workbench.report.wording import signed
from workbench.resolve import EXPERIMENTS

ACCURACY = {
    "classification": "IMAGE CLASSIFICATION",
    "detection": "SEGMENTATION/DETECTION",
    "translation": "NLP - TRANSLATION",
    "language_modeling": "NLP - LANGUAGE MODELING",
}
VALUES = ("dense_fp16", "sparse_fp16", "sparse_int8")
DELTAS = {"delta_fp16_printed": "sparse_fp16", "delta_int8_printed": "sparse_int8"}
_SPEEDS = {
    "gemm": ("SPARSE TENSOR CORES, GEMM", ("M", "N", "K")),
    "conv": ("SPARSE TENSOR CORES, convolutions", ("N", "C", "K", "H")),
}


@dataclass(frozen=True)
class Printed:
    """A number of the talk: where, of what, as printed, and what its own numbers give instead.

    `table` and `row` find it in experiments/talk; `recomputed` is empty where nothing is computed.
    """

    table: str
    slide: str
    row: str
    quantity: str
    printed: str
    recomputed: str = ""
    disagrees: bool = False


def registry() -> list[Printed]:
    """Every printed number in the order of the talk's tables; legible ones only."""
    return [
        *_statements(),
        *_throughput(),
        *_speeds(),
        *_performance(),
        *_accuracy(),
        *_shortened(),
    ]


def rows_of(table: str) -> list[dict[str, str]]:
    """The rows of a table of experiments/talk, as text."""
    with (EXPERIMENTS / "talk" / f"{table}.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def _accuracy() -> Iterator[Printed]:
    for table, slide in ACCURACY.items():
        for row in rows_of(table):
            for name in VALUES:
                if row[name]:
                    yield Printed(table, slide, row["network"], name, row[name])
            for name, of in DELTAS.items():
                if row[name]:
                    yield _difference(table, slide, row, name, of)


def _difference(table: str, slide: str, row: dict[str, str], name: str, of: str) -> Printed:
    """A printed difference against that of the printed numbers; for losses either sign agrees."""
    change = round(float(row[of]) - float(row["dense_fp16"]), 4)
    said = 0.0 if row[name] == "-" else float(row[name])
    signs = (1,) if row["higher_is_better"] == "yes" else (1, -1)
    disagrees = all(abs(said - sign * change) > 1e-6 for sign in signs)
    decimals = len(row[of].partition(".")[2])
    quantity = name.removesuffix("_printed").replace("delta", "difference")
    recomputed = signed(change, decimals=decimals)
    return Printed(table, slide, row["network"], quantity, row[name], recomputed, disagrees)


def _shortened() -> Iterator[Printed]:
    for row in rows_of("shortened_retraining"):
        for name in ("baseline_epochs", "fine_tuning_epochs", *VALUES):
            slide = "SHORTEN RETRAINING"
            yield Printed("shortened_retraining", slide, row["network"], name, row[name])


def _speeds() -> Iterator[Printed]:
    for table, (slide, sizes) in _SPEEDS.items():
        for row in rows_of(table):
            subject = " ".join(f"{size}={row[size]}" for size in sizes)
            speed = f"{row['speedup_sparse_vs_dense']}x"
            yield Printed(table, slide, subject, "speedup sparse against dense", speed)


def _throughput() -> Iterator[Printed]:
    slide = "TENSOR CORE MATH THROUGHPUT"
    for row in rows_of("tensor_core_throughput"):
        subject = f"{row['input_operands']}, {row['accumulator']} accumulator"
        ratio = float(row["dense_tops"]) / 19.5  # of FFMA, the table's first row
        for name, factor in (("dense_vs_ffma_printed", 1), ("sparse_vs_ffma_printed", 2)):
            if row[name]:
                disagrees = float(row[name].rstrip("X")) != round(ratio * factor)
                quantity = name.removesuffix("_printed").replace("_", " ")
                again = f"{ratio * factor:.0f}X"
                yield Printed(
                    "tensor_core_throughput", slide, subject, quantity, row[name], again, disagrees
                )
        yield Printed("tensor_core_throughput", slide, subject, "dense TOPS", row["dense_tops"])


def _performance() -> Iterator[Printed]:
    for row in rows_of("network_performance"):
        if row["value"]:
            subject = f"{row['network']} {row['data_type']}".replace(" not printed", "")
            yield Printed(
                "network_performance",
                "NETWORK PERFORMANCE",
                subject,
                row["scenario"],
                row["performance_as_printed"],
            )


def _statements() -> Iterator[Printed]:
    for row in rows_of("statements"):
        yield Printed("statements", row["slide"], row["subject"], row["quantity"], row["printed"])
