"""The graph: what a cell depends on, and which cells have to run."""

from pathlib import Path

import pytest

from workbench import current, dag, stages
from workbench.record import Cell

ENDS = [("2to4", "quantize"), ("dense", "quantize")]


def cell(treatment: str, stage: str) -> Cell:
    return Cell(scale="smoke", network="resnet50", treatment=treatment, stage=stage, seed=0)


def test_a_chain_leads_from_dense_to_the_cell() -> None:
    steps = [(c.treatment, c.stage) for c in dag.chain(cell("2to4", "quantize"))]
    assert steps == [("dense", "dense"), ("2to4", "prune"), ("2to4", "retrain"), ENDS[0]]
    assert [(c.treatment, c.stage) for c in dag.chain(cell("dense", "quantize"))] == [
        ("dense", "dense"),
        ("dense", "quantize"),
    ]


def test_makers_of_absent_files_run_again_and_nothing_else(work_of, tmp_path: Path, edit) -> None:
    cells = list(dict.fromkeys(c for end in ENDS for c in dag.chain(cell(*end))))
    results = tmp_path / "results"
    assert current.due(cells, results) == set(cells)
    for step in cells:
        work = work_of(step.network, step.treatment, step.stage)
        stages.run(work).write(work.out / "record.json")
    assert current.due(cells, results) == set()
    for path in results.rglob("*.safetensors"):
        path.unlink()
    assert current.due(cells, results) == set()  # records are results
    edit("networks/resnet50.yaml", "title:", "quantize: {percentile: 99.0}\ntitle:")
    assert current.due(cells, results) == set(cells)  # quantize needs all that was deleted


def test_a_run_without_a_seed_list_uses_the_scales() -> None:
    assert dag.seeds({"seeds": ""}, "lite") == [0, 1, 2]
    assert dag.seeds({"seeds": 0}, "lite") == [0]
    assert dag.seeds({"seeds": "3,4"}, "lite") == [3, 4]
    with pytest.raises(dag.ConfigError, match="seeds are whole numbers"):
        dag.seeds({"seeds": "a"}, "lite")
