"""A network at a scale, as its records and curves tell it."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workbench.record import Cell, Record
from workbench.report import compare
from workbench.report.style import PALETTE
from workbench.spec import Column

Rows = dict[str, list[dict[str, Any]]]  # the rows of a curve by phase


@dataclass(frozen=True)
class Network:
    """A network at a scale with the columns of all studies and the records that exist."""

    name: str
    scale: str
    columns: compare.Columns
    found: dict[Cell, Record]
    root: Path

    def records(self, column: Column) -> list[Record]:
        """The records of a column, by seed."""
        wanted = (self.name, column.treatment, column.stage)
        cells = [c for c in self.found if (c.network, c.treatment, c.stage) == wanted]
        return [self.found[cell] for cell in sorted(cells, key=lambda cell: cell.seed)]

    def curves(self, column: Column) -> list[Rows]:
        """The training curves of a column, by seed, where they lie beside the records."""
        found = []
        for record in self.records(column):
            path = self.root / record.cell.folder / "curve.jsonl"
            if path.exists():
                found.append(_by_phase(path.read_text()))
        return found

    def color(self, column: Column) -> str:
        """One color per treatment: dense first, then the patterns, then the controls."""
        base = self.columns[compare.baseline(self.columns)].treatment
        sparse = [self.columns[key] for key in compare.sparse(self.columns, self.name, self.scale)]
        order = [base, *(c.treatment for c in [*sparse, *self.columns.values()])]
        place = list(dict.fromkeys(order)).index(column.treatment)
        return PALETTE[place % len(PALETTE)]


def _by_phase(text: str) -> Rows:
    rows: Rows = {}
    for line in text.splitlines():
        row = json.loads(line)
        rows.setdefault(row["phase"], []).append(row)
    return rows
