"""Averaging of checkpoints: which steps count, zeros under masks, resuming, refusals."""

import pytest
import torch
from torch import nn

from workbench.sections import Average
from workbench.training.average import AverageError, Averaging

CPU = torch.device("cpu")


def averaging(model: nn.Module, last: int = 3, every: str = "2it", length: int = 9) -> Averaging:
    return Averaging(Average(last=last, every=every), model, "train", length, 4, CPU)


def steps(model: nn.Linear, mean: Averaging, first: int, after: int) -> None:
    """Training in which the weights are the number of the step, the first one held at zero."""
    for done in range(first + 1, after + 1):
        with torch.no_grad():
            model.weight.fill_(done)[0, 0] = 0
        mean.update(done)


def test_the_mean_is_of_the_last_checkpoints_and_held_zeros_stay_zero() -> None:
    model = nn.Linear(3, 2, bias=False)
    mean = averaging(model)
    steps(model, mean, 0, 9)
    mean.finish()
    # of nine steps, every second back from the end: 5, 7 and 9
    assert model.weight.flatten().tolist() == [0, *[pytest.approx(7.0)] * 5]
    assert torch.equal(model.weight[0, 0], torch.tensor(0.0))


def test_an_interval_may_be_an_epoch() -> None:
    model = nn.Linear(3, 2, bias=False)
    mean = averaging(model, last=2, every="1ep", length=8)  # of four steps
    steps(model, mean, 0, 8)
    mean.finish()
    assert model.weight[1].tolist() == [6.0, 6.0, 6.0]  # of 4 and 8


def test_tied_weights_stay_tied() -> None:
    model = nn.Sequential(nn.Embedding(4, 4), nn.Linear(4, 4, bias=False))
    model[1].weight = model[0].weight
    mean = averaging(model, last=2, every="1it", length=2)
    for done in (1, 2):
        nn.init.constant_(model[0].weight, float(done))
        mean.update(done)
    mean.finish()
    assert model[1].weight is model[0].weight
    assert model[0].weight.unique().tolist() == [1.5]


def test_going_on_from_a_state_changes_no_bit() -> None:
    ends = []
    for stop in (9, 7):
        torch.manual_seed(0)
        model = nn.Linear(5, 5)
        mean = averaging(model)
        for done in range(1, 10):
            with torch.no_grad():
                model.weight.add_(torch.randn(5, 5))
            mean.update(done)
            if done == stop:
                state = {name: value.clone() for name, value in mean.state().items()}
                mean = averaging(model)
                mean.restore(state)
        mean.finish()
        ends.append(model.weight.detach())
    assert torch.equal(*ends)


def test_more_checkpoints_than_the_phase_has_are_refused() -> None:
    with pytest.raises(AverageError, match="takes 5 checkpoints of 2 steps, .* 9 .*at most 4 fit"):
        averaging(nn.Linear(2, 2), last=5)


def test_networks_with_batch_norm_are_refused() -> None:
    with pytest.raises(AverageError, match="phase train: train.average: .* batch norms"):
        averaging(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)))
