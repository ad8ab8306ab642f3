"""Steps as a CUDA graph: the bits of the same steps taken one by one, and seconds per step.

`pytest -m gpu -s tests/training/test_graph_on_gpu.py` prints what a step takes either way.
"""

import itertools
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import GradScalerKwargs
from torch import Tensor, nn

from workbench.data.loader import Shares, shuffled
from workbench.models import bert, cifar_resnet, resnet
from workbench.sections import Data, Optimizer, Phase, Train
from workbench.sparsity import hold, prune
from workbench.tasks.language_model import Masked
from workbench.training import graph
from workbench.training.loop import Run, train
from workbench.training.resume import Resume

pytestmark = pytest.mark.gpu

SGD = Optimizer(name="sgd", lr=0.05, momentum=0.9, weight_decay=1e-4)
ADAMW = Optimizer(name="adamw", lr=1e-3, weight_decay=0.01, decay_norms=False)
BATCH = 128


class Noise:
    """Pinned batches of noise as the loader hands them over, 8 in turn, so that none is awaited."""

    steps_per_epoch, metric, why_no_graph = 8, "top1", None

    def __init__(self, size: int = 32) -> None:
        generator = torch.Generator().manual_seed(0)
        images = torch.randn(8, BATCH, 3, size, size, generator=generator)
        labels = torch.randint(10, (8, BATCH), generator=generator)
        pairs = zip(images.pin_memory(), labels.pin_memory(), strict=True)
        self.batches = [list(pair) for pair in pairs]

    def order(self) -> Callable[[int], list[int]]:
        return shuffled(8 * BATCH, BATCH, seed=0)

    def training_batches(self, start: int, stop: int, shares: Shares) -> Iterator[Any]:
        return itertools.islice(itertools.cycle(self.batches), start, stop)

    def loss(self, model: nn.Module, batch: Any, carry: Any) -> tuple[Tensor, Any]:
        images, labels = batch
        return nn.functional.cross_entropy(model(images), labels), None


class Pieces(Noise):
    """Blocks of 128 word pieces drawn at random, 128 a batch: embeddings' gradients are sorted."""

    loss, _losses = Masked.loss, Masked._losses

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)

        def drawn(below: int, *shape: int) -> Tensor:
            return torch.randint(below, (BATCH, *shape), generator=generator).pin_memory()

        self.batches = [
            {
                "input_ids": (pieces := drawn(1000, 128)),
                "token_type_ids": drawn(2, 128),
                "positions": (asked := torch.randperm(BATCH * 128, generator=generator)[:2731]),
                "labels": pieces.flatten()[asked],  # to be copied, which 40 steps begin to learn
                "next_sentence_label": drawn(2),
            }
            for _ in range(8)
        ]


def dropped_out(**_: Any) -> nn.Module:
    """ResNet-20 that draws random numbers in every step."""
    return nn.Sequential(nn.Dropout(0.1), cifar_resnet.build(blocks=3), nn.Dropout(0.1))


def trained(
    folder: Path,
    build: Callable[..., nn.Module],
    as_graph: bool,
    steps: int = 20,
    optimizer: Optimizer = SGD,
    precision: str = "fp16",
    clip_norm: float | None = None,
    task: Noise | None = None,
) -> tuple[dict[str, Tensor], list[dict], float]:
    """Weights, curve and seconds per step (from the 40th on) of a training with 2:4 masks held."""
    AcceleratorState._reset_state(True)  # of the precision of another test
    # overflows at once and again every few steps, so that steps are left out in replays too
    scaling = GradScalerKwargs(init_scale=2.0**26, growth_interval=4)
    accelerator = Accelerator(mixed_precision=precision, kwargs_handlers=[scaling])
    how = Train(length=f"{steps}it", batch=BATCH, optimizer=optimizer, clip_norm=clip_norm)
    torch.manual_seed(1)
    model, times = build(), []
    masks = prune(model, {"kind": "nm", "keep": 2, "of": 4})
    run = Run(
        accelerator,
        Resume(folder, "digest"),
        0,
        1e9,
        lambda phase, rows: times.append(time.perf_counter()),  # the losses are there: a sync
        hold=lambda model, optimizer, length: hold(masks, model, optimizer),
        as_graph=as_graph,
    )
    phase = Phase(task="classification", data=Data(name="noise"), train=how)
    rows = train(model, task or Noise(), "train", phase, run)
    masks.verify(model)
    seconds = (times[-1] - times[1]) / (steps - 40) if steps > 40 else 0.0
    return {name: value.cpu() for name, value in model.state_dict().items()}, rows, seconds


@pytest.mark.parametrize(
    ("build", "optimizer", "precision", "clip_norm"),
    [
        (lambda: cifar_resnet.build(blocks=3), SGD, "fp16", None),
        (lambda: cifar_resnet.build(blocks=3), SGD, "fp16", 1.0),
        (lambda: cifar_resnet.build(blocks=3), SGD, "bf16", None),
        (lambda: cifar_resnet.build(blocks=3), ADAMW, "fp16", 1.0),
        (dropped_out, SGD, "fp16", None),
    ],
    ids=["fp16", "fp16-clipped", "bf16", "adamw", "dropout"],
)
def test_twenty_steps_replayed_are_the_bits_of_twenty_steps_taken(
    build: Callable[..., nn.Module],
    optimizer: Optimizer,
    precision: str,
    clip_norm: float | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    how = {"optimizer": optimizer, "precision": precision, "clip_norm": clip_norm}
    replayed, rows, _ = trained(tmp_path / "graph", build, True, **how)
    monkeypatch.setattr(graph, "WARM_UP", 1000)  # the same steps, none of them recorded
    taken, expected, _ = trained(tmp_path / "steps", build, True, **how)
    eager, foreach, _ = trained(tmp_path / "eager", build, False, **how)
    assert rows == expected
    differing = [name for name in taken if not torch.equal(taken[name], replayed[name])]
    assert not differing
    # eager steps compute the update in several kernels: other roundings, amplified by training
    assert rows[-1]["loss"] == pytest.approx(foreach[-1]["loss"], rel=0.02)
    worst = max(float((eager[n].float() - taken[n].float()).abs().max()) for n in taken)
    print(f"\nloss {rows[-1]['loss']:.6f}, eager {foreach[-1]['loss']:.6f}; weights by {worst:.2g}")


def test_pretraining_of_bert_can_be_recorded(tmp_path: Path) -> None:
    def build() -> nn.Module:
        small = {"layers": 2, "hidden": 128, "heads": 2, "feed_forward": 512, "vocabulary": 1000}
        return bert.build(head="masked_language_model", **small)

    how = {"steps": 40, "optimizer": ADAMW, "clip_norm": 1.0, "task": Pieces()}
    _, rows, _ = trained(tmp_path / "graph", build, True, **how)
    _, expected, _ = trained(tmp_path / "eager", build, False, **how)
    # attention's gradients are summed in no fixed order
    assert rows[-1]["loss"] == pytest.approx(expected[-1]["loss"], rel=0.02)
    assert rows[-1]["loss"] < rows[0]["loss"] - 0.5


@pytest.mark.parametrize(
    ("name", "build", "size"),
    [
        ("ResNet-20, 32 pixels", lambda: cifar_resnet.build(blocks=3), 32),
        ("ResNet-56, 32 pixels", lambda: cifar_resnet.build(blocks=9), 32),
        ("ResNet-50, 64 pixels", lambda: resnet.build(counts=[3, 4, 6, 3], classes=10), 64),
    ],
)
def test_seconds_per_step_are_printed(
    name: str, build: Callable[..., nn.Module], size: int, tmp_path: Path
) -> None:
    task = Noise(size)
    _, _, eager = trained(tmp_path / "eager", build, False, steps=200, task=task)
    _, _, replayed = trained(tmp_path / "graph", build, True, steps=200, task=task)
    first, then = (f"{seconds * 1e3:.2f} ms" for seconds in (eager, replayed))
    where = f"{name}, batch {BATCH}, fp16, 2:4, {torch.cuda.get_device_name()}"
    print(f"\n{where}: {first} a step eager, {then} as a graph, {eager / replayed:.1f} times")
    assert replayed > 0
