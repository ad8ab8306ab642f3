"""Stage dense: train all phases of the recipe, each from the weights of the one before."""

from dataclasses import dataclass

from torch import nn, optim

from workbench.record import Record
from workbench.sections import Phase
from workbench.sparsity import Hold, Masks, MaskScheduler, hold, summary
from workbench.stages.choosing import Choosing
from workbench.stages.weights import Weights, load, state, take
from workbench.stages.work import Work
from workbench.tasks import Task
from workbench.training.graph import GraphError, obstacle
from workbench.training.loop import Run, train
from workbench.training.resume import Row

NO_MASKS = Masks({}, {"kind": "none"}, "c4")


@dataclass(frozen=True)
class Trained:
    """The weights at the end of each phase, the curve, and the last phase's network."""

    ends: dict[str, Weights]
    rows: list[Row]
    task: Task
    model: nn.Module
    masks: Masks


def run(work: Work) -> Record:
    """Train or obtain; writes the weights at the prune point and at the end."""
    trained = train_phases(work, work.spec.phases, None, NO_MASKS)
    work.write("prune_point.safetensors", trained.ends[work.spec.repeat_from])
    work.write("final.safetensors", trained.ends[work.spec.last_phase])
    work.write_curve(trained.rows)
    rows = {"summary": summary(trained.model)}
    return work.finish(work.spec.last_phase, trained.task, None, rows)


def train_phases(
    work: Work,
    phases: dict[str, Phase],
    start: Weights | None,
    masks: Masks,
    choosing_in: str | None = None,
) -> Trained:
    """Train phases in order from `start`, holding masks; they follow their weights' names.

    `start` are weights at the end of the phase `repeat_from`, which may be before the first. In the
    phase `choosing_in` masks are chosen by the treatment's schedule, for it and the rest.
    """
    ends: dict[str, Weights] = {}
    rows: list[Row] = []
    for number, (name, phase) in enumerate(phases.items()):
        goes_on = name == work.spec.repeat_from and not number
        prefix = "" if goes_on or start is None else phase.prefix
        task = work.task(name)
        task.teacher = work.teacher(name, task)
        model = work.model(name, task)
        if start is not None and goes_on:
            load(model, start)
        elif start is not None:
            work.notes[f"{name}/left_out"] = take(model, start, prefix)
        masks, dropped = masks.renamed({"": prefix}).fitted_to(model)
        work.notes |= {f"{name}/masks_left_out": dropped} if dropped else {}
        choosing = Choosing(work, name) if name == choosing_in else None
        finished = work.resume.finished(name)
        if phase.weights:
            load(model, *work.obtained(name))
        elif finished is None:
            fresh = train_phase(work, name, phase, (model, task), masks, choosing)
            rows += fresh
            masks = choosing.end(model) if choosing else masks
            if work.accelerator.is_main_process:
                work.resume.finish(name, state(model), fresh)
        else:
            load(model, finished)
            rows += work.resume.curve(name)
            masks = choosing.remembered() if choosing else masks
        work.judge(name, model, task)
        start = ends[name] = state(model)
    return Trained(ends, rows, task, model, masks)


def train_phase(
    work: Work,
    name: str,
    phase: Phase,
    trained: tuple[nn.Module, Task],
    masks: Masks,
    choosing: Choosing | None = None,
    why_no_graph: str | None = None,
) -> list[Row]:
    """Train one phase in place, holding masks or choosing them; its curve.

    `why_no_graph` tells why its steps cannot be a CUDA graph, if not for the phase's own reasons.
    """

    def held(model: nn.Module, optimizer: optim.Optimizer, length: int) -> Hold | MaskScheduler:
        return (
            choosing.begin(model, optimizer, length) if choosing else hold(masks, model, optimizer)
        )

    run = Run(
        accelerator=work.accelerator,
        resume=work.resume,
        seed=work.cell.seed,
        checkpoint_seconds=work.spec.checkpoint_seconds,
        log=work.log,
        hold=held if masks or choosing else None,
        as_graph=_as_graph(work, name, phase, trained[1], bool(choosing), why_no_graph),
    )
    return train(*trained, name, phase, run)


def _as_graph(
    work: Work, name: str, phase: Phase, task: Task, chooses: bool, why_not: str | None
) -> bool:
    """Whether the steps of a phase are a CUDA graph; the record notes it, or why they are not."""
    if work.spec.training_step == "eager":
        return False
    why_not = why_not or obstacle(task, phase.train, work.accelerator, chooses)
    if why_not and work.spec.training_step == "graph":
        raise GraphError(
            f"phase {name}: its steps cannot be a CUDA graph: {why_not}; use training_step: auto, "
            "which leaves such phases eager"
        )
    work.notes[f"{name}/training_step"] = f"eager: {why_not}" if why_not else "graph"
    return not why_not
