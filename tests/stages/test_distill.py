"""Distillation: what the loss is, who the teacher is, and what is refused."""

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file
from torch import nn

from workbench import dag, stages
from workbench.compression import Treatment
from workbench.record import Cell, read
from workbench.sparsity import Masks
from workbench.stages.weights import StageError
from workbench.tasks.teacher import Teacher


def finish(work) -> None:
    stages.run(work).write(work.out / "record.json")
    work.forget_resume()


def test_the_loss_is_the_cross_entropy_with_what_the_teacher_thinks_likely() -> None:
    said, logits = torch.randn(5, 3).double(), torch.randn(5, 3).double()
    teacher = Teacher(nn.Linear(3, 3).requires_grad_(True), weight=0.75, temperature=2.0)
    teacher.mixed(torch.tensor(8.0), logits.clone().requires_grad_(), torch.zeros(5, 3)).backward()
    assert teacher.model.weight.grad is None
    teacher = Teacher(lambda _: said, weight=0.75, temperature=2.0)
    found = teacher.mixed(torch.tensor(8.0), logits, None)
    likely = (said / 2).softmax(1)
    divergence = (likely * (likely.log() - (logits / 2).log_softmax(1))).sum(1).mean()
    assert float(found) == pytest.approx(0.25 * 8 + 0.75 * 4 * float(divergence), rel=1e-5)
    same = teacher.mixed(torch.tensor(8.0), said, None)
    assert float(same) == pytest.approx(2.0)


def test_a_distilled_network_is_two_of_four_and_learned_from_the_dense_one(work_of) -> None:
    finish(work_of("resnet20_cifar", "dense", "dense"))
    ends = {}
    for treatment in ("2to4", "2to4_distilled"):
        for stage in ("prune", "retrain"):
            finish(work_of("resnet20_cifar", treatment, stage))
        work = work_of("resnet20_cifar", treatment, "retrain")
        ends[treatment] = load_file(work.out / "final.safetensors")
        Masks.load(work.out / "masks.safetensors").verify_tensors(ends[treatment])
    assert any(
        not torch.equal(ends["2to4"][name], ends["2to4_distilled"][name]) for name in ends["2to4"]
    )
    record = read(work.out / "record.json")
    assert any(name.endswith("dense/dense/final.safetensors") for name in record.inputs)
    assert "distill" in record.spec["treatment"]
    finish(work_of("resnet20_cifar", "2to4_distilled", "quantize"))


def test_what_is_pruned_does_not_depend_on_the_teacher_and_what_is_retrained_does() -> None:
    def cell(treatment: str, stage: str) -> tuple[str, str, str, str]:
        return "resnet20_cifar", treatment, "lite", stage

    assert dag.stage_digest(*cell("2to4", "prune")) == dag.stage_digest(
        *cell("2to4_distilled", "prune")
    )
    digests = {dag.stage_digest(*cell(name, "retrain")) for name in ("2to4", "2to4_distilled")}
    assert len(digests) == 2
    known = {"scale": "lite", "network": "resnet20_cifar", "seed": 0, "stage": "retrain"}
    assert "teacher" in dag.upstream(Cell(treatment="dense_again_distilled", **known))
    assert "teacher" not in dag.upstream(Cell(treatment="2to4", **known))


def test_a_task_without_classes_is_refused_before_it_trains(work_of) -> None:
    work = work_of("transformer_xl", "2to4_distilled", "retrain")
    phase = work.spec.last_phase
    with pytest.raises(StageError, match="task language_model is not classification: take a"):
        work.teacher(phase, work.task(phase))


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"retrain": False}, "part of retraining"),
        ({"schedule": {"kind": "once"}, "pattern": {"kind": "nm"}}, "no dense network to distill"),
    ],
)
def test_a_student_without_a_teacher_is_an_error(given, words) -> None:
    with pytest.raises(ValidationError, match=words):
        Treatment(distill={}, **given)
