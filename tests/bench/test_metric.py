"""What swapping does to the metric of a checkpoint: the pipeline's own tiny one."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from workbench import dag, sparsity
from workbench.bench.metric import metric
from workbench.record import Cell
from workbench.stages.weights import state
from workbench.stages.work import Work


@pytest.fixture
def work(tmp_path: Path) -> Work:
    cell = Cell(scale="smoke", network="resnet50", treatment="2to4", stage="retrain", seed=0)
    return Work(cell, dag.spec_of("resnet50", "2to4", "smoke"), tmp_path, tmp_path)


def test_without_a_checkpoint_there_is_a_reason(work) -> None:
    assert metric(work, "fp16")["reason"].startswith("no checkpoint: final.safetensors of smoke/")


def test_the_metric_is_judged_before_and_after_swapping(work) -> None:
    phase = work.spec.last_phase
    model = work.model(phase, work.task(phase))
    sparsity.prune(model)
    work.out.mkdir(parents=True)
    save_file(state(model), work.out / "final.safetensors")
    asked = []

    def spoiling(swapped: nn.Module, precision: str, example: tuple[Any, ...]) -> None:
        swapped(*example)  # as the task calls the network
        asked.append((precision, example[0].shape[1:]))
        swapped.fc.weight.zero_()
        swapped.fc.bias.copy_(torch.arange(len(swapped.fc.bias)))  # it says the last class always

    told = metric(work, "int8", spoiling)
    side = work.spec.phases[phase].data.image_size
    assert asked == [("int8", torch.Size([3, side, side]))]
    assert told["name"] == "top1"
    # one of ten classes, of which the largest has 12.7 % of the held-out images (chance, README)
    assert told["sparse"] < 20
    assert told["difference"] == told["sparse"] - told["dense"]
