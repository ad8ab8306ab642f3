"""Masks keep their identity from prune to export: a stage refuses those that were not pruned."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from workbench import cli, dag, sparsity, stages
from workbench.provenance import sha256
from workbench.stages.weights import StageError

STAGES = ("prune", "retrain", "quantize")


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("finished")


@pytest.fixture
def cell_of(work_of, finished, tmp_path):
    """A function that gives the Work of a stage over a copy of finished results."""
    if not any(finished.iterdir()):
        for treatment, stage in (("dense", "dense"), *(("2to4", stage) for stage in STAGES)):
            work = work_of("resnet50", treatment, stage, finished)
            stages.run(work).write(work.out / "record.json")
    shutil.copytree(finished, tmp_path / "copy")
    return lambda stage: work_of("resnet50", "2to4", stage, tmp_path / "copy")


def other_masks(path: Path) -> sparsity.Masks:
    """As many masks as in the file, each turned around along its input channels."""
    masks = sparsity.Masks.load(path)
    turned = {name: mask.flip(1) for name, mask in masks.items()}
    return sparsity.Masks(turned, masks.pattern, masks.rule)


def set_one_pruned(weights: Path, masks: Path) -> str:
    tensors, kept = load_file(weights), sparsity.Masks.load(masks)
    name = next(iter(kept))
    tensors[name][tuple((~kept[name]).nonzero()[0].tolist())] = 1
    save_file(tensors, weights)
    return re.escape(name)


def as_recorded(work, path: Path) -> str:
    """The record of a stage, with the file as it is now."""
    record = json.loads((work.out / "record.json").read_text())
    record["outputs"][path.name]["sha256"] = sha256(path)
    return json.dumps(record)


@pytest.mark.parametrize(("stage", "before"), [("retrain", "prune"), ("quantize", "retrain")])
def test_a_stage_refuses_masks_that_were_not_pruned(stage, before, cell_of) -> None:
    path = cell_of(before).out / "masks.safetensors"
    other_masks(path).save(path)
    with pytest.raises(StageError, match=f"{before}/masks.safetensors: these are not the masks"):
        stages.run(cell_of(stage))


@pytest.mark.parametrize(
    ("stage", "before", "weights"),
    [("retrain", "prune", "pruned"), ("quantize", "retrain", "final")],
)
def test_a_stage_refuses_weights_that_were_not_pruned(stage, before, weights, cell_of) -> None:
    folder = cell_of(before).out
    path = folder / f"{weights}.safetensors"
    name = set_one_pruned(path, folder / "masks.safetensors")
    with pytest.raises(StageError, match="not the file of the record beside it"):
        stages.run(cell_of(stage))
    (folder / "record.json").write_text(as_recorded(cell_of(before), path))
    with pytest.raises(sparsity.SparsityError, match=name):
        stages.run(cell_of(stage))


@pytest.mark.parametrize("stage", STAGES)
def test_every_stage_exports_into_one_file_that_verifies(
    stage, cell_of, tmp_path, monkeypatch, capsys
) -> None:
    work = cell_of(stage)
    monkeypatch.setattr(dag, "RESULTS", str(work.results))
    out = tmp_path / "network.safetensors"
    given = ["export", "resnet50", "--stage", stage, "--out", str(out)]
    assert cli.run(given) == 0, capsys.readouterr().err
    tensors, masks = sparsity.load_compressed(out)
    name = {"prune": "pruned", "retrain": "final", "quantize": "int8"}[stage]
    whole = load_file(work.out / f"{name}.safetensors")
    assert all(torch.equal(tensors[key], whole[key]) for key in whole)
    assert masks.density() == 0.5
    assert cli.run(["verify", str(out)]) == 0
    assert masks.digest() in capsys.readouterr().out


def test_export_refuses_weights_and_masks_that_were_not_pruned(
    cell_of, tmp_path, monkeypatch, capsys
) -> None:
    work = cell_of("retrain")
    monkeypatch.setattr(dag, "RESULTS", str(work.results))
    given = ["export", "resnet50", "--out", str(tmp_path / "out")]
    masks = work.out / "masks.safetensors"
    name = set_one_pruned(work.out / "final.safetensors", masks)
    assert cli.run(given) == 1
    assert re.search(f"workbench export: {name}: 1 weights outside", capsys.readouterr().err)
    other_masks(masks).save(masks)
    assert cli.run(given) == 1
    assert "these are not the masks of the record beside it" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
