"""Every network through dense, prune, retrain and quantize in one process, at a tiny scale."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from workbench import resolve, sparsity, stages
from workbench.record import RecordError, read
from workbench.stages.weights import StageError

FAMILIES = resolve.study("tour").networks  # one network of each


class Interrupted(Exception):
    """Stands for a kill."""


def finish(work) -> None:
    stages.run(work).write(work.out / "record.json")
    work.forget_resume()


@pytest.fixture
def dense_of(work_of):
    def of(network: str, results: Path | None = None) -> Path:
        work = work_of(network, "dense", "dense", results)
        finish(work)
        return work.out

    return of


@pytest.mark.parametrize("network", resolve.names("networks"))
def test_the_recipe_runs_and_keeps_its_promises(network: str, work_of, dense_of) -> None:
    dense = read(dense_of(network) / "record.json")
    works = {}
    for stage in ("prune", "retrain", "quantize"):
        works[stage] = work_of(network, "2to4", stage)
        finish(works[stage])
    records = {stage: read(work.out / "record.json") for stage, work in works.items()}
    spec = works["retrain"].spec

    masks = sparsity.Masks.load(works["prune"].out / "masks.safetensors")
    assert masks.density() == 0.5
    assert records["prune"].mask_digest == masks.digest()
    assert all(
        row["is_2to4"] for row in records["prune"].sparsity["layers"] if row["layer"] in masks
    )
    kept = sparsity.Masks.load(works["retrain"].out / "masks.safetensors")
    final = load_file(works["retrain"].out / "final.safetensors")
    assert len(kept) > 0
    for name, mask in kept.items():
        assert not final[name][~mask].any(), name
    integers = records["quantize"].sparsity["integers"]
    assert integers["pruned_not_zero"] == 0
    written = load_file(works["quantize"].out / "int8.safetensors")
    assert all(written[name].dtype == torch.int8 for name in kept)  # the gates of LSTMs too
    assert integers["layers_2to4"] == integers["layers_masked"] == len(kept)
    assert integers["pruned_weights"] == sum(int((~mask).sum()) for mask in kept.values())
    for record in (dense, records["retrain"], records["quantize"]):
        assert record.primary.startswith(spec.last_phase)
        assert record.primary in record.metrics
    assert not (works["retrain"].out / "resume").exists()


@pytest.mark.parametrize("network", [*FAMILIES, "levenshtein_transformer"])
def test_an_interrupted_stage_ends_bit_equal(network: str, work_of, dense_of, tmp_path) -> None:
    whole = dense_of(network, tmp_path / "whole")
    calls: list[str] = []

    def interrupt(phase: str, rows: list) -> None:
        calls.append(phase)
        if len(calls) > 1 and calls[-2] == phase:
            raise Interrupted

    work = work_of(network, "dense", "dense", tmp_path / "parts")
    work.log = interrupt
    with pytest.raises(Interrupted):
        finish(work)
    torch.rand(7)  # the state of torch's generator must not matter
    finish(work_of(network, "dense", "dense", tmp_path / "parts"))
    for name in ("final.safetensors", "prune_point.safetensors", "curve.jsonl"):
        assert (whole / name).read_bytes() == (work.out / name).read_bytes(), name


def test_what_another_spec_left_is_thrown_away(work_of, edit, dense_of, tmp_path, capsys) -> None:
    def interrupt(phase: str, rows: list) -> None:
        raise Interrupted

    work = work_of("resnet50", "dense", "dense", tmp_path / "parts")
    work.log = interrupt
    with pytest.raises(Interrupted):
        finish(work)
    edit("scales/smoke.yaml", "length: 40it", "length: 21it")
    finish(work_of("resnet50", "dense", "dense", tmp_path / "parts"))
    assert "left by another spec" in capsys.readouterr().out


def test_dense_again_trains_as_long_and_prunes_nothing(work_of, dense_of) -> None:
    dense_of("resnet50")
    for stage in ("prune", "retrain"):
        finish(work_of("resnet50", "dense_again", stage))
    work = work_of("resnet50", "dense_again", "retrain")
    assert len(sparsity.Masks.load(work.out / "masks.safetensors")) == 0
    pruned = load_file(work_of("resnet50", "dense_again", "prune").out / "pruned.safetensors")
    dense = load_file(work_of("resnet50", "dense", "dense").out / "prune_point.safetensors")
    assert all(torch.equal(pruned[name], dense[name]) for name in dense)


def test_absent_and_truncated_inputs_are_named(work_of, dense_of) -> None:
    with pytest.raises(StageError, match="prune_point.safetensors is absent; run the stage"):
        stages.run(work_of("resnet50", "2to4", "prune"))
    path = dense_of("resnet50") / "prune_point.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(StageError, match="not a whole safetensors file"):
        stages.run(work_of("resnet50", "2to4", "prune"))


def test_a_damaged_record_is_named(dense_of) -> None:
    path = dense_of("resnet50") / "record.json"
    path.write_text(path.read_text()[:-40])
    with pytest.raises(RecordError, match="record.json: not a record .*delete it"):
        read(path)
    shutil.rmtree(path.parent)
    with pytest.raises(RecordError, match="no such record"):
        read(path)


def test_weights_of_another_shape_are_refused(work_of, edit, dense_of) -> None:
    dense_of("resnet50")
    edit("scales/smoke.yaml", "depth: 0.0625", "depth: 0.5")
    with pytest.raises(StageError, match="weights are of another network .*from dense on again"):
        stages.run(work_of("resnet50", "2to4", "prune"))
