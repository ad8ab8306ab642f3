"""How figures look: palette, type, and svg text that follows the page from light to dark."""

import io
import re
from html import escape
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

# Okabe and Ito's colour-blind safe palette; the page gives each a light and a dark value
PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
INK, MUTED, GRID = "#1b1f24", "#656d76", "#d8dee4"
_VARIABLES = {
    **{colour: f"var(--c{number})" for number, colour in enumerate(PALETTE, 1)},
    INK: "var(--ink)",
    MUTED: "var(--muted)",
    GRID: "var(--grid)",
}
# in html the parser knows the names; without them a figure points nowhere outside the page
_NEEDLESS = (
    "<metadata>.*?</metadata>",
    r"<defs>\s*<style.*?</defs>",
    r' xmlns(:xlink)?="[^"]*"',
    r'(?<=<g) id="[^"]*"',
    r"font-family: [^;\"]+;? ?",
)
STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "workbench",
    "font.size": 9,
    "axes.edgecolor": GRID,
    "axes.labelcolor": MUTED,
    "axes.titlecolor": INK,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "text.color": INK,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "lines.linewidth": 1.6,
    "lines.solid_capstyle": "round",
}


def panel(width: float, height: float) -> tuple[Figure, Axes]:
    """A transparent figure of one panel, in inches."""
    figure = Figure(figsize=(width, height), layout="constrained")
    figure.patch.set_visible(False)
    axes = figure.add_subplot()
    axes.patch.set_visible(False)
    return figure, axes


def write_svg(figure: Figure, path: Path) -> None:
    """Write the figure, on white, as a file that stands alone."""
    figure.patch.set(visible=True, facecolor="white")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, format="svg", metadata={"Date": None})


def svg(figure: Figure, label: str) -> str:
    """The figure as svg for a page: no outside names, colours as css variables."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    for needless in _NEEDLESS:
        text = re.sub(needless, "", text, flags=re.DOTALL)
    for colour, variable in _VARIABLES.items():
        text = text.replace(colour, variable)
    return text.replace("<svg ", f'<svg role="img" aria-label="{escape(label)}" ', 1)
