"""The way of running a step: every builder as a graph, what is noted, refused and not digested."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.training.recording import captured
from workbench import dag, resolve, stages
from workbench.record import Record
from workbench.stages import Work, dense
from workbench.tasks import class_of
from workbench.training import graph


def of_each_builder() -> list[str]:
    """A network of each builder that a phase trains whose steps can be a graph."""
    found: dict[str, str] = {}
    for network in resolve.names("networks"):
        spec = dag.spec_of(network, "dense", "full")
        for name, phase in spec.phases.items():
            if class_of(phase).why_no_graph is None and phase.weights is None:
                found.setdefault(spec.model_of(name).build, network)
    return [*found.values(), "resnet20_cifar"]  # whose weights only the smoke scale trains


def run(work: Work, wanted: str) -> Record:
    work.spec = work.spec.model_copy(update={"training_step": wanted})
    record = stages.run(work)
    record.write(work.out / "record.json")
    work.forget_resume()
    return record


@pytest.mark.parametrize("network", of_each_builder())
def test_steps_of_every_builder_are_replayed_bit_equal(
    network: str, work_of: Callable, edit: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    edit("scales/smoke.yaml", "length: 40it", "length: 10it")
    monkeypatch.setattr(graph, "captured", captured)
    monkeypatch.setattr(graph, "aside", lambda step: step())
    monkeypatch.setattr(dense, "obstacle", lambda task, *_: task.why_no_graph)  # but for the device
    ends = []
    for warm_up in (graph.WARM_UP, 1000):
        monkeypatch.setattr(graph, "WARM_UP", warm_up)
        work = work_of(network, "dense", "dense", tmp_path / str(warm_up))
        record = run(work, "auto")
        assert "graph" in [record.notes[f"{name}/training_step"] for name in work.spec.phases]
        ends.append(load_file(work.out / "prune_point.safetensors"))
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[1])


def test_auto_leaves_steps_eager_where_there_is_no_gpu_and_notes_it(
    work_of: Callable, tmp_path: Path
) -> None:
    expected = run(work_of("resnet20_cifar", "dense", "dense", tmp_path / "eager"), "eager")
    record = run(work_of("resnet20_cifar", "dense", "dense", tmp_path / "auto"), "auto")
    why = "eager: graphs are for GPUs, and the device is cpu"
    assert record.notes == expected.notes | {"train/training_step": why}
    assert record.spec_digest == expected.spec_digest
    assert record.outputs == expected.outputs


def test_a_graph_that_cannot_be_is_refused_by_name(work_of: Callable) -> None:
    message = "phase train: its steps cannot be a CUDA graph: .*device is cpu; use .*auto"
    with pytest.raises(graph.GraphError, match=message):
        run(work_of("resnet20_cifar", "dense", "dense"), "graph")


def test_the_way_of_running_is_in_no_digest(edit: Callable) -> None:
    def digests() -> list[str]:
        return [dag.stage_digest("bert_base", "2to4", "lite", s) for s in dag.OUTPUTS]

    before = digests()
    edit("scales/lite.yaml", "network:\n", "network:\n  training_step: auto\n")
    assert dag.spec_of("bert_base", "2to4", "lite").training_step == "auto"
    assert digests() == before
