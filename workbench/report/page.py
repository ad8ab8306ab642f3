"""One html page for a scale: header, tables, costs, and a section per network; no other file."""

from collections.abc import Iterable
from html import escape
from pathlib import Path
from string import Template

from workbench import dag, resolve
from workbench.files import write_text
from workbench.record import Record
from workbench.report import claims, collect, compare, costs, held_out
from workbench.report.network import Network
from workbench.report.render import RESULTS, html, made_of
from workbench.report.sections import section
from workbench.report.wording import caveat, duration
from workbench.spec import Column

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
    shown = [_network(name, studies, scale, seeds, root) for name in networks]
    compared = [study for study in studies if resolve.study(study).columns]
    rows = {name for study in compared for name in dag.study_networks(study, networks)}
    text = Template(TEMPLATE.read_text()).substitute(
        title=f"2:4 sparsity, scale {escape(scale)}",
        caveat=f'<p class="caveat">{caveat(scale)}</p>' if caveat(scale) else "",
        facts=_facts([record for network in shown for record in network.found.values()], seeds),
        contents=_contents(studies, networks, scale),
        tables="\n".join(_study(study, scale, networks, seeds, root) for study in studies),
        claims=claims.section(scale, seeds, root),
        costs=costs.stages([n for n in shown if n.name in rows], _columns(compared)),
        budget=costs.budget(scale, seeds, root),
        networks="\n".join(section(network) for network in shown),
    )
    write_text(root / scale / f"{name}.html", text)


def _network(name: str, studies: list[str], scale: str, seeds: list[int], root: Path) -> Network:
    """A network with the columns of the studies that are about it."""
    about = [study for study in studies if name in dag.study_networks(study, [name])]
    columns = _columns(about, name)
    cells = [
        dag.cell_of(scale, name, column, seed) for seed in seeds for column in columns.values()
    ]
    return Network(name, scale, columns, collect.records(cells, root), root)


def _seeds_with_records(scale: str, networks: list[str], root: Path) -> list[int]:
    paths = [
        path for name in networks for path in (root / scale / name).glob("seed*/*/*/record.json")
    ]
    found = {int(path.parents[2].name.removeprefix("seed")) for path in paths}
    return sorted(found) or dag.seeds({}, scale)


def _columns(studies: Iterable[str], network: str = "") -> compare.Columns:
    """The columns of studies, of each the first; and the methods of a network."""
    merged: compare.Columns = {}
    for study in studies:
        plan = resolve.study(study)
        own = {key: method for key, method in plan.methods.items() if method.network == network}
        for key, column in {**plan.columns, **own}.items():
            plain = Column(treatment=column.treatment, stage=column.stage)
            if plain not in merged.values():
                merged[key] = plain
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
    titles |= {"claims": "The talk's numbers", "costs": "Time and memory"}
    titles |= {name: dag.spec_of(name, "dense", scale).title for name in networks}
    return "\n".join(f'<a href="#{anchor}">{escape(title)}</a>' for anchor, title in titles.items())


def _study(study: str, scale: str, networks: list[str], seeds: list[int], root: Path) -> str:
    table = made_of(study, scale, networks, seeds, root)
    curves = ""
    if resolve.study(study).methods:
        curves = held_out.section(study, scale, networks, seeds, root)
    return (
        f'<section id="table-{table.name}"><h2>{escape(table.title)}</h2>\n{html(table)}\n'
        f"{curves}</section>"
    )
