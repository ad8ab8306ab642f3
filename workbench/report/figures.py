"""Figures as svg text for a page: curves, the schedule in three steps, density, and scores."""

from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from workbench.report.style import GRID, INK, MUTED, PALETTE, STYLE, panel, svg
from workbench.report.wording import number

Curve = tuple[Sequence[float], Sequence[float]]
Line = tuple[str, str, list[Curve]]  # label, color, one curve per seed
Band = tuple[str, str, dict[int, list[float]]]  # label, group, and by step a score of each seed
Part = tuple[str, Curve]  # a phase and its learning rate over steps

_NARROWEST = 0.16  # of the width, for a phase of few steps
_MARK = 0.07
_MOST_STAIRS = 6
_FIRST = 4  # a quarter of the points of a line may lie outside the axis
_DASHES = ("solid", "dashed", "dotted")
_COLORS = (*PALETTE, INK)
_MOST_NAMES = 48


@mpl.rc_context(STYLE)
def curves(title: str, lines: list[Line]) -> str:
    """Training loss over the steps of one phase: a line per stage and seed."""
    figure, axes = panel(4.8, 2.7)
    for label, color, repeats in lines:
        for place, (steps, losses) in enumerate(repeats):
            name = "_nolegend_" if place else label
            axes.plot(steps, losses, color=color, label=name, alpha=0.9 / len(repeats) ** 0.3)
    axes.set(title=title, xlabel="step", ylabel="training loss")
    axes.set_xlim(left=0)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.legend(loc="upper right", handlelength=1.2)
    return svg(figure, title)


@mpl.rc_context(STYLE)
def bands(title: str, lines: list[Band], higher: bool) -> str:
    """A score over steps: a line of means per label, and the range over seeds as a band.

    Labels of one group share a color, the second of them dashed. The axis leaves out the first
    scores of a training, which are far off.
    """
    figure, axes = panel(9.8, 4.2)
    late: list[float] = []
    groups = list(dict.fromkeys(group for _, group, _ in lines))
    drawn: list[str] = []
    for label, group, points in lines:
        steps = sorted(points)
        means = [sum(points[step]) / len(points[step]) for step in steps]
        lows, highs = ([pick(points[step]) for step in steps] for pick in (min, max))
        color = _COLORS[groups.index(group) % len(_COLORS)]
        axes.plot(steps, means, color=color, linestyle=_DASHES[drawn.count(group)], label=label)
        axes.fill_between(steps, lows, highs, color=color, alpha=0.18, linewidth=0)
        late += [*lows[len(lows) // _FIRST :], *highs[len(highs) // _FIRST :]]
        drawn.append(group)
    room = 0.05 * ((max(late) - min(late)) or 1)
    axes.set_ylim(min(late) - room, max(late) + room)
    axes.set(title=title, xlabel="step")
    axes.set_xlim(left=0)
    axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
    axes.legend(loc="lower right" if higher else "upper right", handlelength=2.4, ncols=2)
    return svg(figure, title)


@mpl.rc_context(STYLE)
def scores(title: str, rows: list[tuple[str, str, list[float]]], chance: float | None) -> str:
    """The score of each column: a dot per seed, and their mean in figures."""
    figure, axes = panel(4.8, 0.8 + 0.3 * len(rows))
    every = [value for _, _, found in rows for value in found]
    every += [chance] if chance is not None else []
    low, high = min(every), max(every)
    reach = (high - low) or abs(high) or 1.0
    for height, (_, color, found) in enumerate(rows):
        axes.plot(found, [height] * len(found), "o", color=color, markersize=6.5)
        mean = sum(found) / len(found)
        axes.annotate(
            number(mean, title),
            (max(found), height),
            (8, -0.5),
            va="center",
            textcoords="offset points",
        )
    if chance is not None:
        axes.axvline(chance, color=MUTED, linewidth=1, linestyle=(0, (3, 3)))
        axes.annotate(
            "chance",
            (chance, -0.75),
            (4, 0),
            va="center",
            color=MUTED,
            textcoords="offset points",
            fontsize=8,
        )
    axes.set(title=title, xlim=(low - 0.06 * reach, high + 0.2 * reach))
    axes.set_ylim(len(rows) - 0.4, -1.1)
    axes.set_yticks(range(len(rows)), [label for label, _, _ in rows])
    axes.tick_params(axis="y", labelcolor=INK)
    axes.grid(axis="y", visible=False)
    axes.spines["left"].set_visible(False)
    return svg(figure, title)


@mpl.rc_context(STYLE)
def schedule(first: list[Part], third: list[Part]) -> str:
    """The learning rate over the recipe: step 1 dense, step 2 prune, step 3 the repeat.

    Phases differ in length by orders of magnitude, so a short one is drawn wider than its share.
    """
    figure, axes = panel(9.8, 2.5)
    left, ticks = 0.0, []
    for place, ((name, (steps, rates)), width) in enumerate(
        zip([*first, *third], _widths([*first, *third]), strict=True)
    ):
        if place == len(first):
            _prune_mark(axes, left)
            left += 2 * _MARK
            _step_title(axes, left, "Step 3: repeat it, zeros held", PALETTE[1])
        elif place:
            axes.axvline(left, color=GRID, linewidth=1)
        color = PALETTE[0] if place < len(first) else PALETTE[1]
        scaled = [left + width * (step + 1) / (steps[-1] + 1) for step in steps]
        # the rate is known at logged steps: few values are a staircase, many a slope
        stairs = "pre" if len(set(rates)) <= _MOST_STAIRS else None
        style = "steps-pre" if stairs else "default"
        axes.plot(scaled, rates, color=color, linewidth=1.8, drawstyle=style)
        axes.fill_between(scaled, rates, color=color, alpha=0.13, linewidth=0, step=stairs)
        ticks.append((left + width / 2, f"{name}\n{steps[-1] + 1:,} steps"))
        left += width
    _step_title(axes, 0, "Step 1: train dense", PALETTE[0])
    axes.set(xlim=(0, left), ylabel="learning rate")
    axes.set_ylim(bottom=0)
    axes.set_xticks([place for place, _ in ticks], [text for _, text in ticks])
    axes.grid(axis="x", visible=False)
    return svg(figure, "learning rate over the three steps of the recipe")


@mpl.rc_context(STYLE)
def density(layers: list[dict[str, Any]]) -> str:
    """The share of non-zero weights of each layer, from input to output."""
    named = len(layers) <= _MOST_NAMES
    figure, axes = panel(9.8, 3.4 if named else 2.2)
    for label, color, wanted in (("pruned", PALETTE[1], True), ("dense", PALETTE[0], False)):
        chosen = [n for n, layer in enumerate(layers) if (layer["density"] < 1) == wanted]
        heights = [layers[n]["density"] for n in chosen]
        axes.bar(chosen, heights, width=0.72, color=color, label=f"{label} ({len(chosen)})")
    axes.set(ylabel="density", ylim=(0, 1.02), xlim=(-0.7, len(layers) - 0.3))
    axes.set_yticks([0, 0.25, 0.5, 0.75, 1])
    axes.grid(axis="x", visible=False)
    if named:
        names = [layer["layer"].removesuffix(".weight") for layer in layers]
        axes.set_xticks(range(len(layers)), names, rotation=90, fontsize=7.5)
    else:
        axes.set_xlabel("layer, from input to output")
    figure.legend(loc="outside upper left", ncols=2, handlelength=1)
    return svg(figure, "density of each layer")


def _widths(parts: list[Part]) -> list[float]:
    lengths = [steps[-1] + 1 for _, (steps, _) in parts]
    shares = [max(length / sum(lengths), _NARROWEST) for length in lengths]
    return [share / sum(shares) for share in shares]


def _prune_mark(axes: Axes, left: float) -> None:
    axes.axvline(left + _MARK, color=INK, linewidth=1.6)
    axes.annotate(
        "Step 2: prune",
        (left + _MARK, 1),
        (0, 4),
        xycoords=("data", "axes fraction"),
        textcoords="offset points",
        ha="center",
        weight="bold",
    )


def _step_title(axes: Axes, left: float, text: str, color: str) -> None:
    axes.annotate(
        text,
        (left, 1),
        (0, 4),
        ha="left",
        color=color,
        xycoords=("data", "axes fraction"),
        textcoords="offset points",
        weight="bold",
    )
