"""Stage quantize beyond calibration: fine-tuning, comparing calibrators, sensitive layers."""

import hashlib

import pytest
import torch
from safetensors.torch import load_file, save_file

from workbench import models, provenance, stages
from workbench.data import source
from workbench.data.source import DataError
from workbench.record import Record, read
from workbench.stages.weights import StageError

NETWORK = "resnet20_cifar"  # asks for compared calibrators and sensitivity


class Interrupted(Exception):
    """Stands for a kill."""


@pytest.fixture
def finished(work_of):
    """A function that runs a stage of the tiny ResNet and gives its record."""

    def finish(treatment: str, stage: str, results=None) -> Record:
        work = work_of(NETWORK, treatment, stage, results)
        stages.run(work).write(work.out / "record.json")
        work.forget_resume()
        return read(work.out / "record.json")

    return finish


@pytest.fixture
def retrained(finished):
    """A function that runs all that comes before INT8."""

    def before(results=None) -> None:
        for cell in (("dense", "dense"), ("2to4", "prune"), ("2to4", "retrain")):
            finished(*cell, results)

    return before


def test_calibrators_are_compared_and_layers_ordered(retrained, finished) -> None:
    retrained()
    record = finished("2to4", "quantize")
    rows = {row["calibrator"]: row for row in record.sparsity["calibrators"]}
    assert list(rows) == ["max", "percentile", "entropy", "mse"]
    # percentile is the chosen one: the same scores, from the same activations
    assert rows["percentile"]["top1"] == record.metrics["train/top1"]
    assert rows["percentile"]["loss"] == record.metrics["train/loss"]
    assert rows["max"]["loss"] != rows["percentile"]["loss"]
    increases = [row["loss_increase"] for row in record.sparsity["sensitivity"]]
    layers = {row["layer"] for row in record.sparsity["sensitivity"]}
    assert increases == sorted(increases, reverse=True) and increases[0] > increases[-1]
    errors = record.sparsity["errors"]
    assert layers == {site for site in errors if ":" not in site}
    assert {"linear", "conv1", "layer1.0.conv2"} < layers
    assert {site for site in errors if ":" in site} == {f"layer{n}.0:add0" for n in (1, 2, 3)}
    assert all(0 < error < 0.2 for error in errors.values())
    assert record.notes["folded"]["layer1.0.bn2"] == "layer1.0.conv2"
    assert len(record.notes["folded"]) == 7  # the stem's, and two in each of three blocks


def test_the_most_sensitive_layers_stay_as_they_are(retrained, finished, edit) -> None:
    retrained()
    edit("networks/_cifar10.yaml", "{batches: 4}", "{batches: 2, keep_fp16: 2}")
    record = finished("2to4", "quantize")
    worst = [row["layer"] for row in record.sparsity["sensitivity"][:2]]
    assert record.notes["kept_fp"] == sorted(worst)
    assert not set(worst) & set(record.sparsity["errors"])


@pytest.mark.parametrize("scales", ["frozen", "learned"])
def test_fine_tuning_goes_on_where_it_stopped(
    scales: str, retrained, finished, edit, work_of, tmp_path
) -> None:
    edit(
        "networks/_cifar10.yaml",
        "{adds: true",
        f"{{finetune: {{length: 110%, lr_share: 0.1, scales: {scales}}}, adds: true",
    )
    retrained(tmp_path / "whole")
    retrained(tmp_path / "parts")
    record = finished("2to4", "quantize", tmp_path / "whole")
    curve = record.notes["finetune"]
    assert [row["step"] for row in curve] == [19, 39, 43]  # 44 steps: 110% of 40
    assert record.sparsity["integers"]["pruned_not_zero"] == 0
    assert (
        record.sparsity["integers"]["layers_2to4"] == record.sparsity["integers"]["layers_masked"]
    )
    work = work_of(NETWORK, "2to4", "quantize", tmp_path / "parts")
    calls: list[str] = []

    def interrupt(phase: str, rows: list) -> None:
        calls.append(phase)
        if len(calls) == 2:
            raise Interrupted

    work.log = interrupt
    with pytest.raises(Interrupted):
        stages.run(work)
    assert calls == ["int8", "int8"]
    torch.rand(7)  # the state of torch's generator must not matter
    again = finished("2to4", "quantize", tmp_path / "parts")
    assert again.outputs == record.outputs
    assert again.notes["finetune"] == curve
    assert not (work.out / "resume").exists()


@pytest.fixture
def published(edit, work_of, tmp_path):
    """Weights of the tiny ResNet as a catalog's file, without the counters of old PyTorch."""
    spec = work_of(NETWORK, "dense", "dense").spec.model
    torch.manual_seed(1)
    model = models.build(spec.build, **spec.args, width=spec.width, depth=spec.depth, classes=10)
    weights = {k: v for k, v in model.state_dict().items() if "num_batches" not in k}
    path = tmp_path / "data" / "cifar10-resnet-weights" / "resnet20.safetensors"
    path.parent.mkdir(parents=True)
    save_file(weights, path)
    old = "0b04ce1a3f1d35d737e22f9ea05109dd0c2c2d6bfe146226e069195e4ea564e9"
    edit("data/catalog.yaml", old, provenance.sha256(path))
    edit("scales/smoke.yaml", "weights: null", "weights: resnet20_cifar_weights")
    return path, weights


def test_published_weights_are_taken_instead_of_trained(published, finished, work_of) -> None:
    path, weights = published
    record = finished("dense", "dense")
    final = load_file(work_of(NETWORK, "dense", "dense").out / "final.safetensors")
    assert all(torch.equal(final[name], value) for name, value in weights.items())
    assert record.data["resnet20_cifar_weights"] == provenance.sha256(path)
    assert finished("2to4", "prune").sparsity["summary"]["density"] < 0.6
    retrained = finished("2to4", "retrain")  # which trains, and is not of the file any more
    assert "weights" not in retrained.spec["phases"]["train"]
    assert list(retrained.data) == ["caltech10"]


def test_altered_and_foreign_weights_are_refused(published, finished, edit, monkeypatch) -> None:
    path, weights = published
    whole = path.read_bytes()
    monkeypatch.setattr(source, "_sha256", provenance.sha256)  # which remembers a path
    path.write_bytes(whole[:-1] + b"x")
    with pytest.raises(DataError, match="resnet20_cifar_weights: .*is not the file of the catalog"):
        finished("dense", "dense")
    path.unlink()
    with pytest.raises(DataError, match="resnet20.safetensors is absent; put the data pack"):
        finished("dense", "dense")
    save_file({k: v for k, v in weights.items() if k != "linear.bias"}, path)
    edit("data/catalog.yaml", hashlib.sha256(whole).hexdigest(), provenance.sha256(path))
    with pytest.raises(StageError, match="weights are of another network .linear.bias"):
        finished("dense", "dense")
