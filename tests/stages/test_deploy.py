"""Deployment: finished stages of the pipeline swapped, judged by the task on the shipped data."""

import json

import pytest
import torch
from torch import Tensor, nn

import sparse24
from sparse24.packed_layer import PackedLayer
from tests.kernels.networks import apart
from workbench import deploy, quant, stages
from workbench.quant.files import restored
from workbench.record import read
from workbench.stages import Work
from workbench.stages.weights import StageError, read_weights

CELLS = (("dense", "dense"), ("2to4", "prune"), ("2to4", "retrain"), ("2to4", "quantize"))


@pytest.fixture
def finished(work_of):
    """A function that runs the first stages of a network and gives the Work of each."""

    def finish(network: str, count: int = len(CELLS)) -> dict[str, Work]:
        works = {}
        for treatment, stage in CELLS[:count]:
            work = works[stage] = work_of(network, treatment, stage)
            stages.run(work).write(work.out / "record.json")
        return works

    return finish


def judged(work: Work, model: nn.Module) -> tuple[dict[str, float], Tensor]:
    """The task's metrics of a model, named as in the record, and its first logits."""
    phase, results = work.spec.last_phase, []
    dtype = next(model.parameters()).dtype

    def cast(_: nn.Module, given: tuple) -> tuple:  # images are read as fp32
        return tuple(t.to(dtype) if t.is_floating_point() else t for t in given)

    model.register_forward_pre_hook(cast)
    model.register_forward_hook(lambda _, given, result: results.append(result))
    with torch.inference_mode():
        found = work.task(phase).evaluate(model, torch.device("cpu"))
    logits = results[0] if isinstance(results[0], Tensor) else next(iter(results[0].values()))
    return {f"{phase}/{name}": float(value) for name, value in found.items()}, logits.float()


# 64 held-out images, 16 questions; the F1 of one may change by its whole
@pytest.mark.parametrize(("network", "step"), [("resnet50", 100 / 64), ("bert_large", 100 / 16)])
def test_deployed_stages_score_as_their_records(network: str, step: float, finished) -> None:
    works = finished(network)
    # by default fp16 and int8; an INT8 checkpoint's values may run in fp16 too
    for stage, asked in (("retrain", None), ("quantize", None), ("quantize", "fp16")):
        work, record = works[stage], read(works[stage].out / "record.json")
        model, table = deploy.swapped(work.out, asked, data=work.data)
        assert isinstance(table, sparse24.Table)
        packed = [layer for layer in model.modules() if isinstance(layer, PackedLayer)]
        assert len(packed) == sum(row.swapped for row in table) > 5
        kinds = {layer.weight.dtype for layer in packed}
        assert kinds == {torch.int8 if (stage, asked) == ("quantize", None) else torch.float16}
        found, logits = judged(work, model)
        _, floats = judged(work, deploy.network(work)[0])
        # the primary metric to two examples, any loss to 2 %
        assert found[record.primary] == pytest.approx(record.metrics[record.primary], abs=2 * step)
        for name in found:
            if name.endswith("loss"):
                assert found[name] == pytest.approx(record.metrics[name], rel=0.02)
        # INT8 as far from the floats as its simulation; fp16 by 20 roundings of 2^-11, as classes'
        # logits are small differences of large sums
        wanted = 1.5 * apart(simulated(work), floats) if torch.int8 in kinds else 20 * 2**-11
        assert apart(logits, floats) < wanted < 0.2


def simulated(work: Work) -> Tensor:
    """The first logits of an INT8 network as the pipeline judged it."""
    phase = work.spec.last_phase
    model = work.model(phase, work.task(phase)).eval()
    int8 = restored(model, read_weights(work.out / "int8.safetensors"))
    with quant.Simulated(model, int8):
        return judged(work, model)[1]


def test_what_is_not_finished_or_of_another_spec_is_refused(finished) -> None:
    works = finished("resnet50", count=2)
    data = works["dense"].data
    with pytest.raises(deploy.DeployError, match="is of stage prune; allowed are dense, retrain"):
        deploy.swapped(works["prune"].out, data=data)
    folder = works["dense"].out
    with pytest.raises(ValueError, match="scales are of precision 'int8', not of 'fp16'"):
        deploy.swapped(folder, data=data, scales={})
    with pytest.raises(ValueError, match="needs scales .* or an example to calibrate on"):
        deploy.swapped(folder, "int8", data=data)
    record = folder / "record.json"
    told = json.loads(record.read_text())
    record.write_text(json.dumps(told | {"spec_digest": "other"}))
    with pytest.raises(deploy.DeployError, match="the record is of another spec"):
        deploy.swapped(folder, data=data)
    record.write_text(json.dumps(told))
    (folder / "final.safetensors").write_bytes(b"")
    with pytest.raises(StageError, match="not a whole safetensors file"):
        deploy.swapped(folder, data=data)
