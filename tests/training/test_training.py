"""Training: rates of every schedule by hand, optimizers' groups, non-finite losses, processes."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from torch import nn

from workbench.resolve import resolve
from workbench.sections import Optimizer, Schedule, Train
from workbench.training import optim
from workbench.training.loop import Progress, TrainingError
from workbench.training.schedule import learning_rate

ROOT = Path(__file__).resolve().parents[2]


def train(schedule: Schedule, batch: int = 256) -> Train:
    rate = Optimizer(name="sgd", lr=0.1, lr_batch=256, momentum=0.9)
    return Train(length="90ep", batch=batch, optimizer=rate, schedule=schedule)


def rates(schedule: Schedule, *wanted: int) -> list[float]:
    return [learning_rate(train(schedule), step, 90, 1) for step in wanted]


def test_steps_fall_at_their_milestones() -> None:
    schedule = Schedule(shape="step", milestones=(1 / 3, 2 / 3), factor=0.1)
    assert rates(schedule, 0, 29, 30, 59, 60) == pytest.approx([0.1, 0.1, 0.01, 0.01, 0.001])


def test_warm_up_rises_linearly_to_the_peak() -> None:
    schedule = Schedule(shape="constant", warmup="10it")
    assert rates(schedule, 0, 4, 9, 10) == pytest.approx([0.01, 0.05, 0.1, 0.1])


def test_warm_up_may_begin_at_a_share_of_the_rate() -> None:
    schedule = Schedule(shape="constant", warmup="10it", warmup_from=0.5)
    # 0.05 and a tenth of the missing 0.05 a step
    assert rates(schedule, 0, 4, 9, 10) == pytest.approx([0.055, 0.075, 0.1, 0.1])


def test_an_exponential_warm_up_rises_from_its_share_to_the_peak() -> None:
    schedule = Schedule(
        shape="constant", warmup="10it", warmup_shape="exponential", warmup_from=0.01
    )
    # 0.1 x 0.01 ** (1 - done): DeepLearningExamples' rate after 1, 5 and 10 of 10 steps
    assert rates(schedule, 0, 4, 9, 10) == pytest.approx([0.1 * 0.01**0.9, 0.01, 0.1, 0.1])
    with pytest.raises(ValueError, match="warmup_from above 0"):
        Schedule(warmup="10it", warmup_shape="exponential")


def test_gnmt_halves_its_rate_four_times_in_the_last_third() -> None:
    spec = resolve("gnmt", scale="full").spec.phases["train"].train
    length = 24_000
    # lr_scheduler.py: from 0.666 x 24000 = 15984 on, every (24000 - 15984) // 4 = 2004 steps
    expected = {199: 2e-3, 15983: 2e-3, 15984: 1e-3, 17988: 5e-4, 19992: 2.5e-4, 21996: 1.25e-4}
    for step, rate in expected.items():
        assert learning_rate(spec, step, length, 4000) == pytest.approx(rate)
    assert learning_rate(spec, 99, length, 4000) == pytest.approx(2e-4)  # half way up: a tenth


def test_cosine_and_linear_reach_zero_and_inverse_sqrt_falls() -> None:
    assert rates(Schedule(shape="cosine"), 0, 45, 90) == pytest.approx([0.1, 0.05, 0.0])
    assert rates(Schedule(shape="linear"), 0, 45, 90) == pytest.approx([0.1, 0.05, 0.0])
    schedule = Schedule(shape="inverse_sqrt", warmup="10it")
    assert rates(schedule, 9, 39) == pytest.approx([0.1, 0.05])  # sqrt(10 / 40) = 1 / 2


def test_an_exponential_falls_by_its_factor_over_the_phase() -> None:
    schedule = Schedule(shape="exponential", factor=0.01)
    assert rates(schedule, 0, 45, 90) == pytest.approx([0.1, 0.01, 0.001])  # 0.1 x 0.01 ** (1 / 2)


def test_the_rate_scales_with_the_batch() -> None:
    assert learning_rate(train(Schedule(), batch=32), 0, 90, 1) == pytest.approx(0.0125)


def test_norms_and_biases_decay_only_when_asked() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4))
    spec = Optimizer(name="adamw", lr=1e-3, weight_decay=0.01, decay_norms=False)
    groups = optim.build(model, spec).param_groups
    assert [(len(g["params"]), g["weight_decay"]) for g in groups] == [(1, 0.01), (3, 0.0)]


def test_biases_learn_at_a_factor_of_the_rate() -> None:
    model = nn.Linear(4, 4)
    spec = Optimizer(name="sgd", lr=0.1, bias_lr=2.0, decay_norms=False, weight_decay=0.01)
    built = optim.build(model, spec)
    optim.set_rate(built, 0.3)
    assert [(g["lr"], g["weight_decay"]) for g in built.param_groups] == [(0.3, 0.01), (0.6, 0.0)]


def test_adam_takes_its_epsilon() -> None:
    spec = Optimizer(name="adamw", lr=1e-3, eps=1e-6)
    assert optim.build(nn.Linear(4, 4), spec).param_groups[0]["eps"] == 1e-6


def test_nesterov_is_as_asked() -> None:
    for nesterov in (False, True):
        spec = Optimizer(name="sgd", lr=0.1, momentum=0.9, nesterov=nesterov)
        assert optim.build(nn.Linear(4, 4), spec).param_groups[0]["nesterov"] is nesterov


def test_a_loss_that_is_not_finite_names_its_step() -> None:
    progress = Progress("train", [])
    for step, loss in enumerate([1.0, 2.0, float("nan"), 1.0]):
        progress.waiting.append((step, 0.1, torch.tensor(loss)))
    with pytest.raises(TrainingError, match="phase train: loss is nan at step 2 .*lr 0.1"):
        progress.flush(Accelerator(cpu=True))


def test_the_logged_loss_is_the_mean_of_its_steps() -> None:
    progress = Progress("train", [], [(5, 0.1, torch.tensor(1.0)), (6, 0.2, torch.tensor(2.0))])
    alone = SimpleNamespace(reduce=lambda losses, kind: losses)
    assert progress.flush(alone) == [{"phase": "train", "step": 6, "lr": 0.2, "loss": 1.5}]
