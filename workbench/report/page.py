"""One html page for a scale: header, tables, costs, and a section per network; no other file."""

from html import escape
from pathlib import Path
from string import Template

from workbench import dag, resolve
from workbench.files import write_text
from workbench.record import Cell, Record
from workbench.report import collect, compare
from workbench.report.network import Network
from workbench.report.render import RESULTS, grid, html
from workbench.report.sections import section
from workbench.report.tables import Table, study_table
from workbench.report.wording import DASH, caveat, column_title, duration

TEMPLATE = resolve.EXPERIMENTS / "report" / "page.html"


def page(
    scale: str,
    studies: list[str],
    networks: list[str],
    seeds: list[int] | None = None,
    root: Path = RESULTS,
    name: str = "report",
) -> None:
    """Write `{name}.html` under `root/{scale}`; by default of every seed that has a record."""
    shown_in = {network for study in studies for network in dag.study_networks(study, networks)}
    networks = [network for network in networks if network in shown_in]
    seeds = seeds or _seeds_with_records(scale, networks, root)
    columns = _columns(studies)
    cells = [
        Cell(scale=scale, network=network, seed=seed, **column.model_dump())
        for network in networks
        for seed in seeds
        for column in columns.values()
    ]
    found = collect.records(cells, root)
    tables = [study_table(study, scale, networks, seeds, root) for study in studies]
    shown = [Network(network, scale, columns, found, root) for network in networks]
    text = Template(TEMPLATE.read_text()).substitute(
        title=f"2:4 sparsity, scale {escape(scale)}",
        caveat=f'<p class="caveat">{caveat(scale)}</p>' if caveat(scale) else "",
        facts=_facts(list(found.values()), seeds),
        contents=_contents(studies, networks, scale),
        tables="\n".join(_table(table) for table in tables),
        costs=_costs(shown, columns),
        networks="\n".join(section(network) for network in shown),
    )
    write_text(root / scale / f"{name}.html", text)


def _seeds_with_records(scale: str, networks: list[str], root: Path) -> list[int]:
    paths = [
        path for name in networks for path in (root / scale / name).glob("seed*/*/*/record.json")
    ]
    found = {int(path.parents[2].name.removeprefix("seed")) for path in paths}
    return sorted(found) or dag.seeds({}, scale)


def _columns(studies: list[str]) -> compare.Columns:
    merged: compare.Columns = {}
    for study in studies:
        for key, column in resolve.study(study).columns.items():
            if column not in merged.values():
                merged[key] = column
    return merged


def _facts(records: list[Record], seeds: list[int]) -> str:
    if not records:
        return "<div><dt>Records</dt><dd>none yet</dd></div>"
    commits = {
        record.provenance["git"]["commit"] + ("-dirty" if record.provenance["git"]["dirty"] else "")
        for record in records
    }
    devices = {record.provenance["versions"]["device"] for record in records}
    newest = max(record.started for record in records)
    facts = {
        "Newest record": newest[:16].replace("T", " ") + " UTC",
        "Device": ", ".join(sorted(devices)),
        "Commit": ", ".join(sorted(commits)),
        "torch": ", ".join(sorted({r.provenance["versions"].get("torch", "") for r in records})),
        "Records": str(len(records)),
        "Seeds": ", ".join(str(seed) for seed in seeds),
        "Time in stages": duration(sum(record.seconds for record in records)),
    }
    return "\n".join(
        f"<div><dt>{name}</dt><dd>{escape(value)}</dd></div>" for name, value in facts.items()
    )


def _contents(studies: list[str], networks: list[str], scale: str) -> str:
    titles = {f"table-{study}": study.replace("_", " ").capitalize() for study in studies}
    titles |= {"costs": "Time and memory"}
    titles |= {name: dag.spec_of(name, "dense", scale).title for name in networks}
    return "\n".join(f'<a href="#{anchor}">{escape(title)}</a>' for anchor, title in titles.items())


def _table(table: Table) -> str:
    return (
        f'<section id="table-{table.name}"><h2>{escape(table.title)}</h2>\n{html(table)}</section>'
    )


def _costs(networks: list[Network], columns: compare.Columns) -> str:
    rows = []
    for network in networks:
        cells = [_cost(network.records(column)) for column in columns.values()]
        rows.append([dag.spec_of(network.name, "dense", network.scale).title, *cells])
    return grid(["Network", *(column_title(key) for key in columns)], rows, "costs")


def _cost(records: list[Record]) -> str:
    if not records:
        return DASH
    seconds = sum(record.seconds for record in records) / len(records)
    peak = max(record.peak_memory_mb for record in records)
    return f"{duration(seconds)} · {peak / 1024:.1f} GB"
