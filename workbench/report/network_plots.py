"""The figures of whole networks: speedup over batch, and where the time goes."""

from pathlib import Path

import matplotlib as mpl
import pandas as pd
from matplotlib.figure import Figure

from workbench.report.network_speed import KINDS
from workbench.report.style import GRID, INK, MUTED, PALETTE, STYLE, panel, write_svg

COLORS = dict(zip(KINDS, (*PALETTE, MUTED, GRID), strict=True))
MOST_BARS = 3  # networks, those of the most batches first


def network_plot(frame: pd.DataFrame, path: Path) -> None:
    """Write the speedup over the batch, and beside it, as `_time`, the time by kind of kernel.

    Of the rows that have a speedup.
    """
    frame = frame[frame.speedup.notna()]
    write_svg(_curves(frame), path)
    write_svg(_bars(frame), path.with_stem(f"{path.stem}_time"))


@mpl.rc_context(STYLE)
def _curves(frame: pd.DataFrame) -> Figure:
    """A line per network and precision that was measured at several batches."""
    figure, axes = panel(7.2, 3.8)
    several = [
        (key, rows.sort_values("batch"))
        for key, rows in frame.groupby(["network", "precision"], sort=False)
        if len(rows) > 1
    ]
    for color, ((network, precision), rows) in zip(PALETTE, several, strict=False):
        label = f"{network}, {precision.upper()}"
        axes.plot(rows.batch, rows.speedup, "o-", color=color, label=label, ms=4)
        axes.plot(rows.batch, rows.predicted_speedup, ":", color=color, linewidth=1.2)
    axes.axhline(1, color=MUTED, linewidth=1)
    sizes = sorted({batch for _, rows in several for batch in rows.batch})
    axes.set(xscale="log", xlabel="batch", ylabel="speedup over the strongest dense network")
    axes.set_xticks(sizes, [str(size) for size in sizes])
    axes.minorticks_off()
    axes.plot([], [], ":", color=INK, linewidth=1.2, label="predicted beforehand")
    figure.legend(loc="outside upper left", ncols=2)
    return figure


@mpl.rc_context(STYLE)
def _bars(frame: pd.DataFrame) -> Figure:
    """At the largest batch of a network and precision: dense above 2:4, stacked by kind."""
    counts = frame.groupby("network", sort=False).size().sort_values(ascending=False, kind="stable")
    chosen = frame[frame.network.isin(counts.index[:MOST_BARS])]
    largest = chosen.loc[chosen.groupby(["network", "precision"], sort=False).batch.idxmax()]
    figure, axes = panel(8.2, 1.1 + 0.62 * len(largest))
    heights, names = [], []
    for place, row in enumerate(largest.to_dict("records")):
        for below, which in ((0.0, "dense"), (0.36, "sparse")):
            heights.append(place + below)
            name = f"{row['network']} {row['precision'].upper()}, batch {row['batch']}"
            names.append(f"{name}: dense" if which == "dense" else "2:4")
            left = 0.0
            for kind, color in COLORS.items():
                width = row[f"{which}_ms_{kind.replace(' ', '_')}"] / row["dense_ms"]
                axes.barh(heights[-1], width, 0.32, left=left, color=color)
                left += width
            axes.annotate(
                f"{row[f'{which}_ms']:.2f} ms", (left, heights[-1]), (4, 0), va="center",
                textcoords="offset points", fontsize=8,
            )  # fmt: skip
    for kind, color in COLORS.items():
        axes.barh(0, 0, color=color, label=kind)
    axes.set_yticks(heights, names)
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    widest = max(
        (row["sparse_ms"] / row["dense_ms"] for row in largest.to_dict("records")), default=1
    )
    axes.set(xlabel="time, of the dense network's", xlim=(0, 1.15 * max(1, widest)))
    figure.legend(loc="outside upper left", ncols=4)
    return figure
