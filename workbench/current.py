"""Which records are current, and which cells have to run because theirs are not."""

from pathlib import Path

from workbench import dag
from workbench.record import Cell, Record, read


def is_current(record: Record, root: Path) -> bool:
    """Whether the spec is still that of the record, and its inputs still what current stages made.

    An input whose own record is absent cannot be believed either.
    """
    cell = record.cell
    if record.spec_digest != dag.stage_digest(cell.network, cell.treatment, cell.scale, cell.stage):
        return False
    return all(_is_still_made(record, path, root) for path in dag.upstream(cell).values())


def due(cells: list[Cell], root: Path) -> set[Cell]:
    """The cells that have to run: those without a current record, and the makers of absent files.

    Records travel without weights, so a stage may be done and yet have to run again for the next.
    """
    found, absent = set(), set()
    for cell in reversed(cells):
        path = root / cell.folder / "record.json"
        if cell in absent or not path.exists() or not is_current(read(path), root):
            found.add(cell)
            needs = {
                path.parent for path in dag.upstream(cell).values() if not (root / path).exists()
            }
            absent |= {maker for maker in cells if maker.folder in needs}
    return found


def _is_still_made(record: Record, path: Path, root: Path) -> bool:
    maker_path = root / path.parent / "record.json"
    if str(path) not in record.inputs or not maker_path.exists():
        return False
    maker = read(maker_path)
    made = maker.outputs.get(path.name)
    same = made is not None and made.sha256 == record.inputs[str(path)].sha256
    return same and is_current(maker, root)
