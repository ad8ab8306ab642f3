"""Export: the network of a cell in one file, its 2:4 weights as values and 2-bit metadata."""

from pathlib import Path

from workbench import dag, sparsity
from workbench.files import whole
from workbench.record import Cell
from workbench.stages.weights import read_weights, recorded_masks
from workbench.stages.work import Work

EXPORTED = {"prune": "pruned", "retrain": "final", "quantize": "int8"}


def export(work: Work, out: Path) -> str:
    """Write the weights of a finished stage to `out`; one line on what it holds, in bytes.

    Refused are weights that are not zero outside the masks, and masks that are not those of the
    record: what is exported is what was pruned.
    """
    cell = work.cell
    source = work.out / f"{EXPORTED[cell.stage]}.safetensors"
    masks = recorded_masks(_masks_of(cell, work.results))
    with whole(out) as part:
        sparsity.save_compressed(read_weights(source), masks, part)
    return f"{out}: {out.stat().st_size:,} bytes, {source} has {source.stat().st_size:,}"


def _masks_of(cell: Cell, results: Path) -> Path:
    if cell.stage == "quantize":
        return results / dag.upstream(cell)["masks"]
    return results / cell.folder / "masks.safetensors"
