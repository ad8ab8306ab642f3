"""The table of whole networks, dense against 2:4, beside the talk's, from measurements alone."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import pandas as pd

from workbench.record import RecordError
from workbench.report.cells import Table, Text
from workbench.report.measurements import cell, conditions, measurement
from workbench.report.registry import Printed, rows_of
from workbench.report.wording import DASH, signed

PRECISIONS = {"fp16": ("fp16",), "int8": ("int8", "fp16")}  # those that a dense opponent may have
KINDS = (
    "2:4 products", "dense products", "attention", "norms", "element-wise", "pooling", "copies",
    "other",
)  # fmt: skip
COLUMNS = (
    "network", "precision", "batch", "unit", "size", "dense_backend", "dense_ms",
    "sparse_backend", "sparse_ms",
    "dense_per_s", "sparse_per_s", "speedup", "predicted_speedup", "predicted_dense_ms",
    "predicted_sparse_ms", "dense_memory_mb", "sparse_memory_mb", "dense_mj", "sparse_mj",
    "output_error", "metric", "metric_difference", "talk_per_s", "talk_speedup",
    *(f"{which}_ms_{kind.replace(' ', '_')}" for which in ("dense", "sparse") for kind in KINDS),
)  # fmt: skip
HEADER = (
    "Network", "Type", "Batch", "Dense", "2:4", "Dense a second", "2:4 a second", "Speedup",
    "Predicted", "Memory, MB", "mJ each", "Output error", "Metric", "Talk a second", "Talk",
)  # fmt: skip
# the talk writes its networks otherwise
_TALK = {"bert_large": "BERT-Large", "resnext101_32x16d": "ResNeXt-101_32x16d"}


def network_table(measurements: Path) -> Table:
    """A row per network, precision and batch; RecordError where the folder lacks the measurements.

    Dense is the fastest of all dense candidates of that precision, an INT8 row's of FP16 and FP8
    too; without one in 8 bits an INT8 row has no speedup.
    """
    told = measurement(measurements, "network")
    frame = _frame(told)
    notes = [
        ("", told["method"] + "."),
        ("", "Dense and 2:4: the fastest of their candidates, as named. Times in milliseconds."),
        *(("", f"{name}: {about}.") for name, about in told["candidates"].items()),
        *(("", text) for text in _unopposed(frame)),
        *(("", text) for text in _predicted(frame)),
        ("", "Output error: root mean square of the difference to the FP16 network with the same "
             "weights, over that of its outputs. Weights are random, which costs no time."),
        *(("", text) for text in _missing(told["rows"])),
        ("", "Talk: the numbers of its table, on an A100; whether a throughput is of the sparse "
             "network is not said there."),
        ("", conditions(told) + "."),
    ]  # fmt: skip
    return Table(
        name="network",
        title=f"Whole networks, 2:4 against dense, on {told['facts']['device']}",
        header=list(HEADER),
        rows=[_texts(row) for row in frame.to_dict("records")],
        notes=notes,
        numbers=frame,
    )


def beside(measurements: Path, device: str, network: str, precision: str) -> list[str]:
    """Sentences on a network for its prediction: the talk's numbers, ours, how far others were off.

    `device` is how the name of the predicted card begins in measurements.
    """
    texts = [f"The talk, on an A100, {scenario}: {printed}."
             for scenario, printed in talk_rows(network, precision)]  # fmt: skip
    if not (measurements / "network.json").exists():
        return [*texts, "No network was measured yet: the error of predictions is not known."]
    told = measurement(measurements, "network")
    if not told["facts"]["device"].startswith(device):
        return [*texts, "No network was measured on this device: the error is not known."]
    frame = _frame(told)
    own = frame[(frame.network == network) & (frame.precision == precision)]
    for row in own.to_dict("records"):
        gain = "" if pd.isna(row["speedup"]) else f", {row['speedup']:.2f}x"
        texts.append(
            f"Measured at batch {row['batch']}: dense {row['dense_ms']:.3f} ms "
            f"({row['dense_backend']}), 2:4 {row['sparse_ms']:.3f} ms{gain}."
        )
    return [*texts, *_predicted(frame)]


def claimed(printed: Printed, measurements: Path) -> tuple[str, str]:
    """Our number for one that the talk prints of networks, and why there is none."""
    network, _, precision = printed.row.rpartition(" ")
    ours = next((name for name, theirs in _TALK.items() if theirs == network), "")
    size = printed.quantity.partition("BS=")[2].partition(",")[0]
    if not ours or not size:
        return DASH, "not of one network at a batch"
    try:
        table = network_table(measurements)
    except RecordError as error:
        return DASH, f"no such measurement: {error}"
    rows = table.numbers
    rows = rows[(rows.network == ours) & (rows.precision == precision.lower())]
    if "-" in size:  # of speedups, over the batches
        rows = rows[rows.speedup.notna()].sort_values("speedup")
        told = [f"{row['speedup']:.2f}x at batch {row['batch']}" for row in rows.to_dict("records")]
        shown = " to ".join(dict.fromkeys(told[:1] + told[-1:]))
    else:
        rows = rows[rows.batch == int(size)]
        told = rows.to_dict("records")
        shown = "".join(f"{row['sparse_per_s']:,.0f} {row['unit']}/s" for row in told)
    if rows.empty:
        return DASH, "this network was not measured so, or not beside a dense one of the precision"
    return f"{shown} ({table.title})", ""


def _frame(told: dict[str, Any]) -> pd.DataFrame:
    """The numbers by network, precision and batch, networks in the order of their first row."""
    frame = pd.DataFrame(list(_rows(told["rows"])), columns=COLUMNS)
    order = {name: place for place, name in enumerate(frame.network.unique())}
    keys = ["network", "precision", "batch"]
    return frame.sort_values(
        keys, key=lambda column: column.map(order) if column.name == "network" else column,
        ignore_index=True,
    )  # fmt: skip


def talk_rows(network: str, precision: str) -> list[tuple[str, str]]:
    """The talk's scenarios of a network in a precision with what it prints, in its order."""
    return [
        (row["scenario"], row["performance_as_printed"])
        for row in rows_of("network_performance")
        if row["network"] == _TALK.get(network) and row["data_type"].lower() == precision
        if "BS=" in row["scenario"]
    ]


def _rows(rows: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    keys = dict.fromkeys((row["network"], row["batch"]) for row in rows)
    for network, batch in keys:
        own = [row for row in rows if (row["network"], row["batch"]) == (network, batch)]
        for precision, allowed in PRECISIONS.items():
            timed = [row for row in own if _time(row)]
            sparse = [row for row in timed if row["sparse"] and row["precision"] == precision]
            dense = [row for row in timed if not row["sparse"] and row["precision"] in allowed]
            if sparse and dense:
                is_opposed = any(row["precision"] == precision for row in dense)
                yield _numbers(min(dense, key=_time), min(sparse, key=_time), is_opposed)


def _numbers(dense: dict[str, Any], sparse: dict[str, Any], is_opposed: bool) -> dict[str, Any]:
    batch, precision, network = (sparse[name] for name in ("batch", "precision", "network"))
    times = {"dense": _time(dense), "sparse": _time(sparse)}
    predicted, metric = sparse.get("predicted", {}), sparse.get("metric", {})
    told: dict[str, Any] = {
        "network": network,
        "precision": precision,
        "batch": batch,
        "unit": sparse["unit"],
        "size": sparse["size"],
        "dense_backend": dense["candidate"],
        "sparse_backend": sparse["candidate"],
        "speedup": times["dense"] / times["sparse"] if is_opposed else float("nan"),
        "predicted_speedup": predicted.get("speedup"),
        "predicted_dense_ms": predicted.get("dense_ms"),
        "predicted_sparse_ms": predicted.get("sparse_ms"),
        "output_error": sparse["error"],
        "metric": metric.get("name"),
        "metric_difference": metric.get("difference"),
    }
    for which, row in (("dense", dense), ("sparse", sparse)):
        found = _found(row)
        energy = found["energy_mj"]
        told |= {
            f"{which}_ms": times[which] / 1e3,
            f"{which}_per_s": batch / times[which] * 1e6,
            f"{which}_memory_mb": found["memory_mb"],
            f"{which}_mj": None if energy is None else energy / batch,
        }
        shares = found["shares"]
        told |= {
            f"{which}_ms_{kind.replace(' ', '_')}": times[which] / 1e3 * shares.get(kind, 0.0)
            for kind in KINDS
        }
    return told | _talk(network, precision, batch)


def _talk(network: str, precision: str, batch: int) -> dict[str, str | None]:
    found: dict[str, str | None] = {"talk_per_s": None, "talk_speedup": None}
    for scenario, printed in talk_rows(network, precision):
        sizes = scenario.partition("BS=")[2].partition(",")[0]
        if sizes == str(batch):
            found["talk_per_s"] = printed
        elif "-" in sizes:
            found["talk_speedup"] = printed
    return found


def _texts(row: dict[str, Any]) -> list[Text]:
    shown = partial(cell, row)
    slower = " (slower)" if row["speedup"] < 1 else ""
    metric = DASH if pd.isna(row["metric_difference"]) else signed(row["metric_difference"])
    return [
        Text(row["network"]),
        Text(row["precision"]),
        Text(str(row["batch"])),
        Text(shown("dense_ms", ".3f"), metric=row["dense_backend"]),
        Text(shown("sparse_ms", ".3f"), metric=row["sparse_backend"]),
        Text(shown("dense_per_s", ",.0f")),
        Text(shown("sparse_per_s", ",.0f")),
        Text(shown("speedup", ".2f") + slower),
        Text(shown("predicted_speedup", ".2f")),
        Text(f"{shown('dense_memory_mb', ',.0f')} → {shown('sparse_memory_mb', ',.0f')}"),
        Text(f"{shown('dense_mj', '.1f')} → {shown('sparse_mj', '.1f')}"),
        Text(shown("output_error", ".1e")),
        Text(metric, metric=shown("metric", "") if metric != DASH else ""),
        Text(shown("talk_per_s", "")),
        Text(shown("talk_speedup", "")),
    ]


def _unopposed(frame: pd.DataFrame) -> Iterator[str]:
    """The rows whose dense network has more bits, as none of theirs was measured."""
    rows = frame[frame.speedup.isna()].to_dict("records")
    if rows:
        names = ", ".join(f"{row['network']} at {row['batch']}" for row in rows)
        yield f"No speedup: no dense network in 8 bits was measured of {names}."


def _predicted(frame: pd.DataFrame) -> Iterator[str]:
    """How far the predictions were off, in speedup and in the sparse network's time."""
    known = frame[frame.predicted_speedup.notna() & frame.speedup.notna()]
    if known.empty:
        yield "Predicted: no device of experiments/bench/devices.yaml is this card."
        return
    errors = {
        "speedup": known.predicted_speedup / known.speedup - 1,
        "time of the 2:4 network": known.predicted_sparse_ms / known.sparse_ms - 1,
        "time of the dense network": known.predicted_dense_ms / known.dense_ms - 1,
    }
    told = ", ".join(
        f"{name} {median(map(abs, error)):.0%} (worst {max(map(abs, error)):.0%})"
        for name, error in errors.items()
    )
    yield f"Predicted: by `workbench predict`, of {len(known)} rows; median error of the {told}."


def _missing(rows: list[dict[str, Any]]) -> Iterator[str]:
    """The candidates that were not measured, with the reason, networks of one reason together."""
    found: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        if reason := _found(row).get("reason"):
            found.setdefault((row["candidate"], reason), []).append(
                f"{row['network']} at {row['batch']}"
            )
    for (candidate, reason), where in found.items():
        yield f"Not measured: {candidate} of {', '.join(where)}: {reason}"


def _found(row: dict[str, Any]) -> dict[str, Any]:
    return row["found"][row["candidate"]]


def _time(row: dict[str, Any]) -> float | None:
    return _found(row).get("median_us")
