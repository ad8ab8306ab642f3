"""Tables as csv, Markdown and html, and the block of the README that shows one."""

import re
from html import escape
from pathlib import Path

from workbench import dag, resolve
from workbench.files import write_text
from workbench.record import RecordError
from workbench.report.cells import Table, Text
from workbench.report.conv import conv_plot, conv_table
from workbench.report.gemm import gemm_plot, gemm_table
from workbench.report.methods import methods_table
from workbench.report.network_plots import network_plot
from workbench.report.network_speed import network_table
from workbench.report.tables import study_table
from workbench.report.throughput import throughput_table

RESULTS = Path(dag.RESULTS)
README = resolve.ROOT / "README.md"


def table(
    study: str, scale: str, networks: list[str], seeds: list[int], root: Path = RESULTS
) -> None:
    """Write the table of a study, `tables/{study}.csv` and `.md`, under `root/{scale}`.

    The tests behind its verdicts are `tables/{study}_tests.csv`.
    """
    made = made_of(study, scale, networks, seeds, root)
    folder = root / scale / "tables"
    published = made.numbers if made.published is None else made.published
    for name, rows in (("", published), ("_tests", made.tests)):
        write_text(folder / f"{study}{name}.csv", rows.to_csv(index=False, float_format="%.6g"))
    write_text(folder / f"{study}.md", markdown(made))


def made_of(study: str, scale: str, networks: list[str], seeds: list[int], root: Path) -> Table:
    """The table of a study, of networks or of methods."""
    of = methods_table if resolve.study(study).methods else study_table
    return of(study, scale, networks, seeds, root)


def bench_table(name: str, scale: str, root: Path = RESULTS) -> None:
    """Write the table of a benchmark, `tables/{name}.csv` and `.md`, and its plot if it has one."""
    tables = {
        "gemm": gemm_table,
        "conv": conv_table,
        "throughput": throughput_table,
        "network": network_table,
    }
    plots = {"gemm": gemm_plot, "conv": conv_plot, "network": network_plot}
    made = tables[name](root / scale / "measurements")
    folder = root / scale / "tables"
    write_text(folder / f"{name}.csv", made.numbers.to_csv(index=False, float_format="%.6g"))
    write_text(folder / f"{name}.md", markdown(made))
    if name in plots:
        plots[name](made.numbers, folder / f"{name}.svg")


def readme_block(scale: str, study: str, root: Path = RESULTS, readme: Path = README) -> None:
    """Put the Markdown table of a study between its markers in the README."""
    source = root / scale / "tables" / f"{study}.md"
    if not source.exists():
        raise RecordError(f"{source}: no such table; run `workbench table {study} --scale {scale}`")
    opening, closing = f"<!-- table:{scale}/{study} -->", "<!-- /table -->"
    before, found, rest = readme.read_text().partition(opening)
    _, closed, after = rest.partition(closing)
    if not found or not closed:
        raise dag.ConfigError(
            f"{readme.name}: no block for this table; "
            f"add the lines {opening} and {closing} where it belongs"
        )
    write_text(readme, f"{before}{opening}\n{source.read_text()}{closing}{after}")


def markdown(made: Table) -> str:
    """The table in Markdown: title, rows, footnotes."""
    rows = [made.header, ["---", *["---"] * (len(made.header) - 1)]]
    rows += [[_plain(text) for text in row] for row in made.rows]
    lines = [f"| {' | '.join(row)} |" for row in rows]
    notes = [f"- {mark} {text}" if mark else f"- {text}" for mark, text in made.notes]
    text = "\n".join([f"**{made.title}**", "", *lines, "", *notes]) + "\n"
    return f"{text}\n{markdown(made.then)}" if made.then else text


def html(made: Table) -> str:
    """The table in html: rows that scroll sideways, then footnotes."""
    body = "\n".join(_html_row(row, made.header) for row in made.rows)
    notes = "\n".join(_html_note(mark, text) for mark, text in made.notes)
    text = f'{scrolled(made.header, body, made.kind)}\n<ul class="notes">\n{notes}\n</ul>'
    return f"{text}\n<h3>{escape(made.then.title)}</h3>\n{html(made.then)}" if made.then else text


def grid(header: list[str], rows: list[list[str]], kind: str = "") -> str:
    """A plain table in html; the first cell of a row names it."""
    lines = []
    for first, *rest in rows:
        cells = "".join(f"<td>{escape(cell)}</td>" for cell in rest)
        lines.append(f"<tr><th scope=row>{escape(first)}</th>{cells}</tr>")
    return scrolled(header, "\n".join(lines), kind)


def scrolled(header: list[str], body: str, kind: str) -> str:
    """Table rows under a header, in a box that scrolls sideways."""
    head = "".join(f"<th scope=col>{escape(name)}</th>" for name in header)
    return (
        f'<div class="scroll" tabindex="0"><table class="{kind}">\n<thead><tr>{head}</tr></thead>\n'
        f"<tbody>\n{body}\n</tbody></table></div>"
    )


def _plain(text: Text) -> str:
    change = f"({text.change})" if text.change else ""
    return (
        " ".join(part for part in (text.value, text.metric, text.spread, change) if part)
        + text.mark
    )


def _html_row(row: list[Text], header: list[str]) -> str:
    first, *rest = row
    cells = [f"<th scope=row>{_html_text(first)}</th>"]
    for text, name in zip(rest, header[1:], strict=True):
        kind = name.partition(" ")[0].lower()
        cells.append(f'<td class="{kind}">{_html_text(text)}</td>')
    return f"<tr>{''.join(cells)}</tr>"


def _html_text(text: Text) -> str:
    mark = f'<span class="mark">{text.mark}</span>' if text.mark else ""
    parts = [f"<b>{escape(text.value)}</b>{mark}"]
    if text.metric:
        parts.append(f'<span class="spread">{escape(text.metric)}</span>')
    if text.change:
        way = {"+": "up", "−": "down"}.get(text.change[0], "")
        parts.append(f'<span class="change {way}">{text.change}</span>')
    if text.spread:
        parts.append(f'<span class="spread">{text.spread}</span>')
    return " ".join(parts)


def _html_note(mark: str, text: str) -> str:
    words = re.sub("`([^`]+)`", r"<code>\1</code>", escape(text))
    return f'<li><span class="mark">{mark}</span> {words}</li>' if mark else f"<li>{words}</li>"
