"""Stage quantize: INT8 of the final network by calibration, and by training where asked for."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from workbench import quant
from workbench.record import Record
from workbench.seeds import seed_for
from workbench.sparsity import Masks
from workbench.stages.dense import NO_MASKS, train_phase
from workbench.stages.weights import load, state
from workbench.stages.work import Work
from workbench.tasks import Task
from workbench.tasks.base import moved

FINETUNE = "int8"  # the name of the phase of quantization-aware training
ROUNDED = "every call of a layer is intercepted, to round its values"

Limits = dict[str, float]


def run(work: Work) -> Record:
    """Fold, calibrate, quantize, evaluate; writes the integers and their scales.

    The record tells the error of every layer, and where the spec asks for them the scores of other
    calibrators, the sensitivity of the layers and the curve of the fine-tuning.
    """
    phase, settings = work.spec.last_phase, work.spec.quantize
    task = work.task(phase)
    model = work.model(phase, task)
    load(model, work.weights())
    masks = work.masks() or NO_MASKS
    masks.verify(model)
    folded = _fold(work, task, model)
    with work.judging(model), quant.Observing(model, settings) as seen:
        _run_batches(work, task, model, settings.batches)
    rows: dict[str, Any] = {}
    if settings.compare:
        rows["calibrators"] = _compared(work, task, model, seen)
    limits = seen.ranges()
    if settings.sensitivity:
        rows["sensitivity"] = _sensitivity(work, task, model, limits)
        for row in rows["sensitivity"][: settings.sensitivity.keep_fp16]:
            limits = {s: v for s, v in limits.items() if s.removesuffix(".hidden") != row["layer"]}
    quantized = quant.quantize(model, limits, folded)
    if settings.finetune:
        quantized = _finetuned(work, task, model, masks, quantized)
    with work.judging(model), quant.Measuring(model, quantized) as measured:
        _run_batches(work, task, model, 1)
    with quant.Simulated(model, quantized):
        work.judge(phase, model, task)
    work.write("int8.safetensors", quantized.tensors())
    work.notes["calibrator"] = settings.model_dump()
    work.notes["folded"] = folded
    work.notes["kept_fp"] = sorted(set(quant.layers(model)) - set(quantized.layers))
    rows |= {"integers": quant.zeros(quantized, masks), "errors": measured.errors()}
    return work.finish(phase, task, masks, rows)


def _batches(work: Work, task: Task, count: int) -> Iterator[Any]:
    for batch in task.training_batches(0, count):
        yield moved(batch, work.accelerator.device)


def _run_batches(work: Work, task: Task, model: nn.Module, count: int) -> None:
    carry = None
    for batch in _batches(work, task, count):
        carry = task.run(model, batch, carry)


def _fold(work: Work, task: Task, model: nn.Module) -> dict[str, str]:
    with work.judging(model), quant.Following(model) as followed:
        _run_batches(work, task, model, 1)
    pairs = followed.pairs()
    quant.fold(model, pairs)
    return pairs


def _compared(
    work: Work, task: Task, model: nn.Module, seen: quant.Observing
) -> list[dict[str, Any]]:
    """The held-out metrics of each calibrator, all from the same activations."""
    rows = []
    for calibrator in work.spec.quantize.compare:
        quantized = quant.quantize(model, seen.ranges(calibrator))
        with work.judging(model), quant.Simulated(model, quantized):
            metrics = task.evaluate(model, work.accelerator.device)
        rows.append({"calibrator": calibrator, **{k: float(v) for k, v in metrics.items()}})
    return rows


def _sensitivity(work: Work, task: Task, model: nn.Module, limits: Limits) -> list[dict[str, Any]]:
    """By how much each layer raises the training loss if only it is INT8; the worst first."""
    quantized = quant.quantize(model, limits)
    batches = list(_batches(work, task, work.spec.quantize.sensitivity.batches))
    exact = _loss(work, task, model, batches)
    rows = []
    for name in quantized.layers:
        with quant.Simulated(model, quantized, only={name}):
            rows.append({"layer": name, "loss_increase": _loss(work, task, model, batches) - exact})
    return sorted(rows, key=lambda row: -row["loss_increase"])


def _loss(work: Work, task: Task, model: nn.Module, batches: list[Any]) -> float:
    """The mean training loss without dropout; detectors have one in training mode only."""
    total, carry = 0.0, None
    torch.manual_seed(seed_for(work.cell.seed, "sensitivity"))  # a detector samples proposals
    with work.judging(model):
        model.train()
        for module in model.modules():
            if not list(module.children()):
                module.eval()
        for batch in batches:
            loss, carry = task.loss(model, batch, carry)
            total += float(loss) / len(batches)
    return total


def _finetuned(
    work: Work, task: Task, model: nn.Module, masks: Masks, start: quant.Quantized
) -> quant.Quantized:
    """The network after training with rounded values; the model holds its new weights."""
    phase, settings = work.spec.phases[work.spec.last_phase], work.spec.quantize.finetune
    train = settings.applied(phase.train, task.steps_per_epoch)
    tuned = phase.model_copy(update={"train": train})
    with quant.Finetuning(model, start, settings.scales == "learned") as rounding:
        finished = work.resume.finished(FINETUNE)
        if finished is None:
            rows = train_phase(work, FINETUNE, tuned, (model, task), masks, why_no_graph=ROUNDED)
            if work.accelerator.is_main_process:
                work.resume.finish(FINETUNE, state(model), rows)
        else:
            load(model, finished)
            rows = work.resume.curve(FINETUNE)
    work.notes["finetune"] = rows
    limits, scales = rounding.scales()
    masks.verify(model)
    return quant.quantize(model, limits, start.folded, scales)
