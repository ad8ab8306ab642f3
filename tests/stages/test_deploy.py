"""Deployment: finished stages of the pipeline swapped, judged by the task on the shipped data."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn

import sparse24
from sparse24.packed_layer import PackedLayer
from workbench import deploy, stages
from workbench.record import read
from workbench.stages import Work
from workbench.stages.work import StageError

CELLS = (("dense", "dense"), ("2to4", "prune"), ("2to4", "retrain"), ("2to4", "quantize"))


@pytest.fixture
def finished(work_of):
    """A function that runs a network through the pipeline and gives the Work of each stage."""

    def finish(network: str) -> dict[str, Work]:
        works = {}
        for treatment, stage in CELLS:
            work = works[stage] = work_of(network, treatment, stage)
            stages.run(work).write(work.out / "record.json")
        return works

    return finish


def half(given: torch.Tensor) -> torch.Tensor:
    """Images in the type that a deployed network takes; the data are read as fp32."""
    return given.half() if given.is_floating_point() else given


def judged(work: Work, model: nn.Module) -> dict[str, float]:
    """The task's metrics of a model, named as in the record."""
    phase = work.spec.last_phase
    model.register_forward_pre_hook(lambda _, given: tuple(map(half, given)))
    with torch.inference_mode():
        found = work.task(phase).evaluate(model, torch.device("cpu"))
    return {f"{phase}/{name}": float(value) for name, value in found.items()}


def agree(found: dict[str, float], recorded: dict[str, float], primary: str, step: float) -> None:
    """The loss, where there is one, is the same to 2 %, the primary metric to two examples."""
    assert found[primary] == pytest.approx(recorded[primary], abs=2 * step)
    for name in found:
        if name.endswith("loss"):
            assert found[name] == pytest.approx(recorded[name], rel=0.02)


# 64 held-out images, 16 questions; the F1 of one may change by its whole
@pytest.mark.parametrize(("network", "step"), [("resnet50", 100 / 64), ("bert_large", 100 / 16)])
def test_deployed_stages_score_as_their_records(network: str, step: float, finished) -> None:
    works = finished(network)
    for stage, precision in (("retrain", "fp16"), ("quantize", "int8")):
        work, record = works[stage], read(works[stage].out / "record.json")
        model, table = deploy.swapped(work.out, data=work.data)
        packed = [layer for layer in model.modules() if isinstance(layer, PackedLayer)]
        assert len(packed) == sum(row.swapped for row in table) > 5
        kinds = {layer.weight.dtype for layer in packed}
        assert kinds == {torch.int8 if precision == "int8" else torch.float16}
        agree(judged(work, model), record.metrics, record.primary, step)


def test_what_is_not_finished_or_of_another_spec_is_refused(finished) -> None:
    works = finished("resnet50")
    with pytest.raises(deploy.DeployError, match="is of stage prune; allowed are dense, retrain"):
        deploy.swapped(works["prune"].out, data=works["prune"].data)
    folder = works["quantize"].out
    with pytest.raises(ValueError, match="scales are of precision 'int8'"):
        deploy.swapped(folder, "fp16", data=works["quantize"].data, scales={})
    told = json.loads((folder / "record.json").read_text())
    (folder / "record.json").write_text(json.dumps(told | {"spec_digest": "other"}))
    with pytest.raises(deploy.DeployError, match="the record is of another spec"):
        deploy.swapped(folder, data=works["quantize"].data)
    Path(works["retrain"].out / "final.safetensors").write_bytes(b"")
    with pytest.raises(StageError, match="not a whole safetensors file"):
        deploy.swapped(works["retrain"].out, data=works["retrain"].data)


def test_an_int8_network_may_be_deployed_in_fp16(finished) -> None:
    work = finished("resnet50")["quantize"]
    model, table = deploy.swapped(work.out, "fp16", data=work.data)
    assert isinstance(table, sparse24.Table)
    assert model.layer1[0].conv1.weight.dtype is torch.float16
    record = read(work.out / "record.json")
    agree(judged(work, model), record.metrics, record.primary, 100 / 64)
