"""The table and the bars of the convolution benchmark, from its measurements alone."""

import csv
import math
from collections.abc import Iterator
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
    library,
    measurement,
    memory_tb,
    over_library,
)
from workbench.report.style import MUTED, PALETTE, STYLE, panel, write_svg
from workbench.resolve import EXPERIMENTS

SHAPE = ("n", "c", "k", "h", "w", "r", "s", "stride", "groups")
COLUMNS = (
    *SHAPE, "dtype", "dense_us", "dense_backend", "sparse24_us", "speedup_vs_dense", "talk",
    "roofline_us", "library_us", "library",
)  # fmt: skip
HEADER = (
    "Batch", "Channels", "Image", "Kernel", "Groups", "Type", "Dense", "sparse24", "Speedup",
    "Of the roofline", "Talk", "Library", "Over it",
)  # fmt: skip
BARS = 256  # the batch whose layers are drawn


def conv_table(measurements: Path) -> Table:
    """A row per shape and type; RecordError where the folder lacks the measurements.

    Dense is the fastest of the libraries and of our kernel's dense mode; ours the best plan.
    """
    told, talk = measurement(measurements, "conv"), _talk()
    facts = told["facts"]
    best, card = ceilings(measurements)
    bandwidth = memory_tb(facts["device"])
    frame = pd.DataFrame(
        [
            _numbers(row, talk) | {"roofline_us": roofline_us(row, best, bandwidth)}
            for row in told["rows"]
        ],
        columns=COLUMNS,
    )
    notes = [
        ("", told["method"] + "."),
        ("", "Times in microseconds; channels in to out, images as they come in."),
        ("", "Dense is the fastest of cuDNN (channels_last), of cuBLAS for a 1x1, and of our "
             "kernel's dense mode, as named; INT8 is requantized to INT8. Library: the fastest "
             "without our dense mode."),
        ("", "Talk: the speedup printed there, on an A100; its fifth row lacks the kernel and may "
             "have 256 or 512 channels, so that both are here."),
        ("", f"Roofline: the sparse instructions alone, measured on {card}, or the bytes of image, "
             f"packed weight and result at {bandwidth:g} TB/s, whichever takes longer."
             if not math.isnan(bandwidth) else
             "Roofline: experiments/bench/devices.yaml does not know this card."),
        *(("", text) for text in _weighted(frame)),
        ("", conditions(told)),
    ]  # fmt: skip
    return Table(
        name="conv",
        title=f"Convolutions, 2:4 against dense, on {facts['device']}",
        header=list(HEADER),
        rows=[_texts(row) for row in frame.to_dict("records")],
        notes=notes,
        numbers=frame,
    )


@mpl.rc_context(STYLE)
def conv_plot(frame: pd.DataFrame, path: Path) -> None:
    """Write the speedup over dense of each layer as bars, as svg.

    A panel for the talk's layers, with its speedups as crosses, and one per network of which at
    least half was measured at the largest batch; a color per type; a line is a layer's roofline.
    """
    talks = frame[frame.talk.notna()]
    panels = {"the talk's layers": list(talks[list(SHAPE)].itertuples(index=False, name=None))}
    measured = set(frame[list(SHAPE)].itertuples(index=False, name=None))
    panels |= {
        f"{name}, batch {BARS}": list(layers)
        for (name, n), layers in _layers().items()
        if n == BARS and 2 * len(measured & set(layers)) >= len(layers)
    }
    panels = {title: shapes for title, shapes in panels.items() if shapes}
    figure, axes = panel(9.0, 3.2 * max(1, len(panels)))
    axes.remove()
    for place, (title, shapes) in enumerate(panels.items(), 1):
        axes = figure.add_subplot(len(panels), 1, place)
        _bars(axes, frame, shapes)
        axes.set(title=title, ylabel="speedup over dense")
        axes.set_ylim(top=1.2 * axes.get_ylim()[1])  # room for the legend
        axes.legend(ncols=3)
    write_svg(figure, path)


def _bars(axes: mpl.axes.Axes, frame: pd.DataFrame, shapes: list[tuple[int, ...]]) -> None:
    for at, (color, (dtype, rows)) in enumerate(
        zip(PALETTE, frame.groupby("dtype", sort=False), strict=False)
    ):
        known = rows.drop_duplicates(SHAPE).set_index(list(SHAPE)).reindex(shapes)
        middles = [i + 0.4 * at for i in range(len(shapes))]
        axes.bar(middles, known.speedup_vs_dense, 0.4, color=color, label=dtype)
        roofs = (known.dense_us / known.roofline_us).tolist()
        axes.hlines(roofs, [x - 0.2 for x in middles], [x + 0.2 for x in middles], MUTED)
        if known.talk.notna().any():
            axes.plot(middles, known.talk, "x", color=MUTED, label="the talk's, on an A100")
    axes.axhline(1, color=MUTED, linewidth=1)
    seen = [_name(dict(zip(SHAPE, shape, strict=True))) for shape in shapes]
    axes.set_xticks([i + 0.2 for i in range(len(seen))], seen)
    axes.tick_params(axis="x", labelrotation=90, labelsize=6)


def _numbers(row: dict[str, Any], talk: dict[tuple[int, ...], float]) -> dict[str, Any]:
    dense_us, backend, ours = fastest(row)
    key = tuple(row[name] for name in ("n", "c", "k", "h", "r"))
    is_talk = row["dtype"] == "float16" and row["stride"] == row["groups"] == 1
    return {name: row[name] for name in (*SHAPE, "dtype")} | {
        "dense_us": dense_us,
        "dense_backend": backend,
        "sparse24_us": ours,
        "speedup_vs_dense": dense_us / ours,
        "talk": talk.get(key) if is_talk else None,
        **library(row),
    }


def roofline_us(row: dict[str, Any], ceilings: dict[str, float], bandwidth: float) -> float:
    """Microseconds below which a 2:4 layer cannot be; NaN where type or card are not known.

    ceilings: TFLOP/s of dense-equivalent work by type; bandwidth: TB/s.
    """
    n, c, k, h, w, r, s, stride, groups = (row[name] for name in SHAPE)
    margin = 2 * row["padding"]
    out_h, out_w = ((size + margin - side) // stride + 1 for size, side in ((h, r), (w, s)))
    element, packed = (2, 0.5625) if row["dtype"].endswith("float16") else (1, 0.625)
    weights = k * (c // groups) * r * s
    # a kernel that steps over pixels does not read them
    read_h, read_w = (min(h, out_h * min(r, stride)), min(w, out_w * min(s, stride)))
    moved = element * (n * read_h * read_w * c + weights * packed + n * out_h * out_w * k)
    work = 2 * n * out_h * out_w * weights
    ceiling = ceilings.get(row["dtype"].replace("bfloat16", "float16"), float("nan"))
    times = work / ceiling, moved / bandwidth
    return float("nan") if any(map(math.isnan, times)) else max(times) / 1e6


def _texts(row: dict[str, Any]) -> list[Text]:
    shown = partial(cell, row)
    stride = f" / {row['stride']}" if row["stride"] > 1 else ""
    return [
        Text(str(row["n"])),
        Text(f"{row['c']} → {row['k']}"),
        Text(f"{row['h']} x {row['w']}"),
        Text(f"{row['r']} x {row['s']}{stride}"),
        Text(str(row["groups"])),
        Text(row["dtype"]),
        Text(shown("dense_us", ".1f"), metric=row["dense_backend"] or ""),
        Text(shown("sparse24_us", ".1f")),
        Text(shown("speedup_vs_dense", ".2f")),
        Text(cell(row | {"share": row["roofline_us"] / row["sparse24_us"]}, "share", ".0%")),
        Text(shown("talk", ".2f")),
        *over_library(row),
    ]


def _weighted(frame: pd.DataFrame) -> Iterator[str]:
    """For each network, batch and type: the speedup of all its convolutions that are 2:4."""
    for (network, batch), layers in _layers().items():
        for dtype, rows in frame.groupby("dtype", sort=False):
            known = rows.drop_duplicates(SHAPE).set_index(list(SHAPE))
            times = known.reindex(list(layers))[["dense_us", "sparse24_us", "library_us"]]
            both = times[["dense_us", "sparse24_us"]]
            if both.isna().any(axis=None):
                continue  # not measured whole
            count = list(layers.values())
            total, dispatched = times.mul(count, axis=0).sum(), both.min(axis=1).mul(count).sum()
            told = (
                f"{network}, batch {batch}, {dtype}: {total.dense_us / total.sparse24_us:.2f}x "
                f"over all its {sum(count)} 2:4 convolutions, "
                f"{total.dense_us / dispatched:.2f}x where each runs what is fastest"
            )
            if times.library_us.notna().all():
                told += f"; over the libraries alone {total.library_us / dispatched:.2f}x"
            yield told + "."


def _layers() -> dict[tuple[str, int], dict[tuple[int, ...], int]]:
    """How often each shape occurs in a network, by network and batch."""
    found: dict[tuple[str, int], dict[tuple[int, ...], int]] = {}
    with (EXPERIMENTS / "bench" / "conv.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            if row["group"] == "talk":
                continue
            name = row["group"].removesuffix(f"_{row['n']}")
            shape = tuple(int(row[column]) for column in SHAPE)
            found.setdefault((name, int(row["n"])), {})[shape] = int(row["count"])
    return found


def _talk() -> dict[tuple[int, ...], float]:
    """The talk's speedups by batch, channels in and out, image and kernel.

    Its row of a 3x3 kernel fits a layer of ResNet-50 only with as many channels in as out: both.
    """
    found = {}
    with (EXPERIMENTS / "talk" / "conv.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            names = ("N", "C", "K", "H", "R_inferred")
            n, c, k, h, r = (int(row[name]) for name in names)
            found[n, c, k, h, r] = float(row["speedup_sparse_vs_dense"])
            if r == 3:
                found[n, k, k, h, r] = found[n, c, k, h, r]
    return found


def _name(row: dict[str, int]) -> str:
    stride = f"/{row['stride']}" if row["stride"] > 1 else ""
    groups = f" g{row['groups']}" if row["groups"] > 1 else ""
    return f"{row['c']}→{row['k']} {row['r']}x{row['s']}{stride}{groups} {row['h']}²"
