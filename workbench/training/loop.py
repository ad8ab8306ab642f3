"""The training loop: steps of one phase, logged, checked for finite losses, resumable."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn, optim
from tqdm import tqdm

from workbench.durations import steps
from workbench.sections import Phase
from workbench.seeds import seed_for
from workbench.tasks.base import Task
from workbench.training import optim as optimizers
from workbench.training.average import Averaging
from workbench.training.graph import Graphed
from workbench.training.resume import Resume, Row
from workbench.training.schedule import learning_rate
from workbench.training.sharing import Sharing
from workbench.training.step import Step

LOG_EVERY = 20  # steps; losses are fetched from the device this often


class TrainingError(RuntimeError):
    """Training that cannot go on; the message names the step, the rate and the batch."""


@dataclass
class Run:
    """What the phases of one stage share."""

    accelerator: Accelerator
    resume: Resume
    seed: int
    checkpoint_seconds: float
    log: Callable[[str, list[Row]], None]
    hold: Callable[[nn.Module, optim.Optimizer, int], Any] | None = None  # int: steps to come
    as_graph: bool = False  # steps are recorded and replayed; `graph.obstacle` says where they can

    def judged(self, model: nn.Module, task: Task) -> dict[str, float]:
        """The primary metric on held-out data now, in the precision of training; the model goes on.

        All processes judge, each the whole of the data.
        """
        model.eval()
        with torch.no_grad(), self.accelerator.autocast():
            value = task.evaluate(model, self.accelerator.device)[task.metric]
        model.train()
        return {"held_out": float(value)}


@dataclass
class Progress:
    """Where a phase is: its logged rows and the losses that are still on the device."""

    phase: str
    rows: list[Row]
    waiting: list[tuple[int, float, Tensor]] = field(default_factory=list)

    def flush(
        self, accelerator: Accelerator, measured: dict[str, float] | None = None
    ) -> list[Row]:
        """Fetch the waiting losses, means over processes; one that is not finite ends all.

        The row has what was `measured` beside them.
        """
        if not self.waiting:
            return []
        losses = torch.stack([loss for _, _, loss in self.waiting]).float()
        losses = accelerator.reduce(losses, "mean").cpu()
        for (step, rate, _), loss in zip(self.waiting, losses.tolist(), strict=True):
            if loss != loss or loss in (float("inf"), float("-inf")):
                raise TrainingError(
                    f"phase {self.phase}: loss is {loss} at step {step} (batch "
                    f"{step}, lr {rate:.3g}); lower the rate, clip the gradient "
                    "or use fp32"
                )
        step, rate, _ = self.waiting[-1]
        row = {"phase": self.phase, "step": step, "lr": rate, "loss": float(losses.mean())}
        row |= measured or {}
        self.rows.append(row)
        self.waiting.clear()
        return [row]


def train(model: nn.Module, task: Task, name: str, phase: Phase, run: Run) -> list[Row]:
    """Train `model` in place for a phase and return its curve; an interrupted phase goes on."""
    accelerator, spec = run.accelerator, phase.train
    length = steps(spec.length, task.steps_per_epoch)
    judge_every = phase.eval.every and max(1, steps(phase.eval.every, task.steps_per_epoch, length))
    optimizer = optimizers.build(model, spec.optimizer, for_graph=run.as_graph)
    sharing = Sharing(accelerator, spec.shares, run.seed, name)
    sharing.check(task.order(), 0)
    torch.manual_seed(seed_for(run.seed, "dropout", name))
    averaging = None
    if spec.average:  # before `prepare`, which ties the model to its wrapper
        averaging = Averaging(
            spec.average, model, name, length, task.steps_per_epoch, accelerator.device
        )
    wrapped, prepared = accelerator.prepare(model, optimizer)
    held = run.hold(model, prepared, length) if run.hold else None
    start, rows = _restored(run, name, model, optimizer, averaging, held, sharing)
    progress = Progress(name, rows)
    take = Step(accelerator, task, wrapped, prepared, sharing, held, spec.clip_norm)
    take = Graphed(take, name) if run.as_graph else take
    batches = iter(task.training_batches(start, length, sharing.shares))
    bar = tqdm(
        range(start, length),
        initial=start,
        total=length,
        desc=name,
        mininterval=5,
        disable=not accelerator.is_main_process,
    )
    saved = time.monotonic()
    model.train()
    for step in bar:
        rate = learning_rate(spec, step, length, task.steps_per_epoch)
        optimizers.set_rate(optimizer, rate)
        loss = take(batches, step)
        if averaging:
            averaging.update(step + 1)
        progress.waiting.append((step, rate, loss))
        to_judge = judge_every and _is_due(step + 1, judge_every, length)
        if _is_due(step + 1, LOG_EVERY, length) or to_judge:
            measured = held.measured() if held else {}
            measured |= run.judged(model, task) if to_judge else {}
            fresh = progress.flush(accelerator, measured)
            bar.set_postfix(loss=f"{fresh[-1]['loss']:.3f}")
            run.log(name, fresh)
            if sharing.is_due(time.monotonic() - saved > run.checkpoint_seconds):
                extra = {"sharing": sharing.state()}
                extra["average"] = averaging.state() if averaging else None
                extra["held"] = held.state() if held else None
                _save(run, name, model, optimizer, step + 1, extra, progress.rows)
                saved = time.monotonic()
    if held:
        held.remove()
    if averaging:
        averaging.finish()
    accelerator.free_memory()
    _unwrap(accelerator, wrapped)
    return progress.rows


def _is_due(done: int, every: int, length: int) -> bool:
    return done % every == 0 or done == length


def _unwrap(accelerator: Accelerator, wrapped: nn.Module) -> None:
    # takes autocast off `forward`, so that evaluation decides about precision itself
    accelerator.unwrap_model(wrapped, keep_fp32_wrapper=False)


def _save(
    run: Run,
    name: str,
    model: nn.Module,
    optimizer: optim.Optimizer,
    step: int,
    extra: dict[str, Any],
    rows: list[Row],
) -> None:
    if not run.accelerator.is_main_process:
        return
    scaler = run.accelerator.scaler
    state = {
        "step": step,
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "scaler": scaler.state_dict() if scaler else {},
        **extra,
        "random": torch.get_rng_state(),
        "device_random": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }
    run.resume.save(name, state, rows)


def _restored(
    run: Run,
    name: str,
    model: nn.Module,
    optimizer: optim.Optimizer,
    averaging: Averaging | None,
    held: Any,
    sharing: Sharing,
) -> tuple[int, list[Row]]:
    state = run.resume.load(name)
    if state is None:
        return 0, []
    model.load_state_dict(state["model"])
    optimizers.restore(optimizer, state["optimizer"])
    if run.accelerator.scaler:
        run.accelerator.scaler.load_state_dict(state["scaler"])
    if averaging:
        averaging.restore(state["average"])
    if held:
        held.restore(state["held"])
    torch.set_rng_state(state["random"])
    if state["device_random"]:
        torch.cuda.set_rng_state_all(state["device_random"])
    print(f"phase {name}: goes on at step {state['step']}", flush=True)
    sharing.restore(state["sharing"])
    return state["step"], state["curve"]
