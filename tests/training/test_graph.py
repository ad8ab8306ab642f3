"""Steps as a graph, on the CPU's stand-in for one: equality, resuming, fp16's scale, refusals."""

from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from tests.training.recording import captured
from workbench.data.loader import Shares, shuffled
from workbench.sections import Data, Optimizer, Phase, Schedule, Train
from workbench.sparsity import hold, prune
from workbench.training import graph, optim
from workbench.training.loop import Run, train
from workbench.training.resume import Resume

STEPS = 24  # of which 3 are taken before the graph is recorded
SGD = Optimizer(name="sgd", lr=0.05, momentum=0.9, weight_decay=0.01)
ADAMW = Optimizer(name="adamw", lr=0.01, weight_decay=0.01, decay_norms=False, bias_lr=2.0)


class Points:
    """A task as the loop sees one: 64 points of 8 numbers and a class, in batches of 8."""

    steps_per_epoch, metric, why_no_graph = 8, "top1", None

    def __init__(self, widths: tuple[int, ...] = (8,)) -> None:
        generator = torch.Generator().manual_seed(0)
        self.x = torch.randn(64, 8, generator=generator)
        self.y, self.widths = self.x[:, :4].argmax(1), widths
        self.order = lambda: shuffled(64, 8, seed=0)

    def training_batches(self, start: int, stop: int, shares: Shares) -> Iterator[Any]:
        for step in range(start, stop):
            chosen = self.order()(step)
            yield [self.x[chosen][: self.widths[step % len(self.widths)]], self.y[chosen]]

    def loss(self, model: nn.Module, batch: Any, carry: Any) -> tuple[Tensor, Any]:
        x, y = batch
        return nn.functional.cross_entropy(model(x), y[: len(x)]), None


def network() -> nn.Sequential:
    torch.manual_seed(1)
    # a bias before a batch norm has gradients of rounding errors, which Adam would make steps of
    hidden = [nn.Linear(8, 16, bias=False), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.2)]
    return nn.Sequential(*hidden, nn.Linear(16, 4))


def phase(optimizer: Optimizer, clip_norm: float | None = 1.0) -> Phase:
    schedule = Schedule(shape="cosine", warmup="5it")
    how = Train(
        length=f"{STEPS}it",
        batch=8,
        optimizer=optimizer,
        schedule=schedule,
        clip_norm=clip_norm,
    )
    return Phase(task="classification", data=Data(name="points"), train=how)


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Graphs of the CPU in place of CUDA's; the list grows by one with each."""
    made: list[int] = []

    def counting(step: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
        made.append(1)
        return captured(step)

    monkeypatch.setattr(graph, "captured", counting)
    monkeypatch.setattr(graph, "aside", lambda step: step())
    return made


def trained(
    folder: Path,
    of: Phase,
    as_graph: bool,
    task: Points | None = None,
    scaler: torch.amp.GradScaler | None = None,
    log: Callable[[str, list], None] = lambda phase, rows: None,
) -> tuple[list[dict], dict[str, Tensor]]:
    """The curve and the weights of a training with masks held."""
    model, accelerator = network(), Accelerator(cpu=True)
    accelerator.scaler = scaler
    masks = prune(model, {"kind": "nm", "keep": 2, "of": 4})
    run = Run(accelerator, Resume(folder, "digest"), 0, 0.0, log, as_graph=as_graph)
    run.hold = lambda model, optimizer, length: hold(masks, model, optimizer)
    rows = train(model, task or Points(), "train", of, run)
    masks.verify(model)
    return rows, model.state_dict()


def is_equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("optimizer", [SGD, ADAMW], ids=["sgd", "adamw"])
def test_replayed_steps_change_no_bit(
    optimizer: Optimizer, recorded: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, weights = trained(tmp_path / "graph", phase(optimizer), True)
    assert len(recorded) == 1
    monkeypatch.setattr(graph, "WARM_UP", STEPS)  # the same steps, none of them recorded
    expected, as_they_are = trained(tmp_path / "steps", phase(optimizer), True)
    assert len(recorded) == 1
    assert rows == expected
    assert is_equal(weights, as_they_are)
    assert int(weights["1.num_batches_tracked"]) == STEPS


@pytest.mark.parametrize("optimizer", [SGD, ADAMW], ids=["sgd", "adamw"])
def test_the_curve_is_that_of_eager_steps(
    optimizer: Optimizer, recorded: list[int], tmp_path: Path
) -> None:
    rows, weights = trained(tmp_path / "graph", phase(optimizer), True)
    expected, eager = trained(tmp_path / "eager", phase(optimizer), False)
    assert [row["step"] for row in rows] == [row["step"] for row in expected] == [19, 23]
    for row, other in zip(rows, expected, strict=True):
        assert row["loss"] == pytest.approx(other["loss"], rel=1e-5)  # fused rounds otherwise
        assert row["lr"] == other["lr"]
    for name, value in eager.items():
        torch.testing.assert_close(weights[name], value, rtol=1e-4, atol=1e-6)
    assert expected[-1]["loss"] < expected[0]["loss"]  # something was learned


def test_steps_that_overflow_are_left_out_in_a_graph_too(
    recorded: list[int], tmp_path: Path
) -> None:
    large = Points()
    large.x = large.x * 2.0**8  # losses of some hundreds, which 2 ** 127 makes infinite
    ends = []
    for as_graph in (True, False):
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127, growth_interval=4)
        folder = tmp_path / str(as_graph)
        rows, weights = trained(folder, phase(SGD, None), as_graph, large, scaler)
        ends.append((weights, scaler.state_dict(), [row["loss"] for row in rows]))
    (weights, scale, losses), (eager, eager_scale, eager_losses) = ends
    # printed by the eager run: halved in the first 3 steps, then 3 times each doubled and halved
    assert scale == eager_scale
    assert scale["scale"] == 2.0**124
    assert losses == pytest.approx(eager_losses, rel=1e-5)
    for name, value in eager.items():
        torch.testing.assert_close(weights[name], value, rtol=1e-4, atol=1e-6)


class Interrupted(Exception):
    """Stands for a kill."""


def interrupt(phase: str, rows: list) -> None:
    if rows[-1]["step"] == STEPS - 1:
        raise Interrupted


@pytest.mark.parametrize("optimizer", [SGD, ADAMW], ids=["sgd", "adamw"])
@pytest.mark.parametrize(("first", "then"), [(True, True), (True, False), (False, True)])
def test_an_interrupted_phase_goes_on_either_way(
    optimizer: Optimizer, first: bool, then: bool, recorded: list[int], tmp_path: Path
) -> None:
    with pytest.raises(Interrupted):
        trained(tmp_path / "parts", phase(optimizer), first, log=interrupt)
    rows, weights = trained(tmp_path / "parts", phase(optimizer), then)
    expected, whole = trained(tmp_path / "whole", phase(optimizer), then)
    assert [row["step"] for row in rows] == [19, 23]
    assert rows[-1]["loss"] == pytest.approx(expected[-1]["loss"], rel=1e-5)
    if first == then:
        assert is_equal(weights, whole)
    for name, value in whole.items():
        torch.testing.assert_close(weights[name], value, rtol=1e-4, atol=1e-6)


def test_every_shape_of_batch_has_its_graph(
    recorded: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, weights = trained(tmp_path / "graph", phase(SGD), True, Points(widths=(8, 6)))
    assert len(recorded) == 2
    monkeypatch.setattr(graph, "WARM_UP", STEPS)
    assert trained(tmp_path / "steps", phase(SGD), True, Points(widths=(8, 6)))[0] == rows


def test_batches_of_ever_new_shapes_are_refused(recorded: list[int], tmp_path: Path) -> None:
    task = Points(widths=(8, 7, 6, 5, 4))
    with pytest.raises(graph.GraphError, match="phase train: step 4 .*shape number 5.*at most 4"):
        trained(tmp_path, phase(SGD), True, task)


def test_a_step_that_asks_the_device_is_refused(recorded: list[int], tmp_path: Path) -> None:
    class Asking(Points):
        def loss(self, model: nn.Module, batch: Any, carry: Any) -> tuple[Tensor, Any]:
            loss, _ = super().loss(model, batch, carry)
            return loss / max(1.0, loss.item()), None

    with pytest.raises(graph.GraphError, match="phase train: .*not permitted.*training_step"):
        trained(tmp_path, phase(SGD), True, Asking())


def test_a_batch_of_other_things_than_tensors_is_refused(
    recorded: list[int], tmp_path: Path
) -> None:
    class Named(Points):
        def training_batches(self, *which: Any) -> Iterator[Any]:
            yield from ([*batch, "a name"] for batch in super().training_batches(*which))

    with pytest.raises(graph.GraphError, match="a batch holds a str"):
        trained(tmp_path, phase(SGD), True, Named())


def test_what_cannot_be_a_graph_is_told() -> None:
    def why(
        device: str = "cuda", processes: int = 1, shares: int = 1, chooses: bool = False
    ) -> str | None:
        accelerator = SimpleNamespace(device=torch.device(device), num_processes=processes)
        how = phase(SGD).train.model_copy(update={"shares": shares})
        return graph.obstacle(Points(), how, accelerator, chooses)

    assert why() is None
    assert why(device="cpu") == "graphs are for GPUs, and the device is cpu"
    assert why(processes=2) == "2 processes exchange gradients"
    assert why(shares=4) == "a batch is cut into 4 shares"
    assert "chooses masks" in why(chooses=True)


def test_each_group_of_a_graph_has_a_rate_of_its_own() -> None:
    built = optim.build(network(), ADAMW, for_graph=True)
    optim.set_rate(built, 0.25)
    assert [float(group["lr"]) for group in built.param_groups] == [0.25, 0.5]
