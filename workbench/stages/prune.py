"""Stage prune: one magnitude pruning of the dense weights, and what it costs before retraining."""

from workbench.record import Record
from workbench.sparsity import (
    Masks,
    explain,
    find_masks,
    kept_magnitude,
    layer_sparsity,
    storage,
    summary,
)
from workbench.stages.weights import StageError, load, state
from workbench.stages.work import Work
from workbench.tasks import Task


def run(work: Work) -> Record:
    """Prune; writes the pruned weights and the masks that retraining keeps.

    Where phases follow the prune point, the dense network of the last one is judged under the
    same masks, so that what pruning costs is told in the metric of the network.
    """
    phase, treatment = work.spec.repeat_from, work.spec.treatment
    if treatment.schedule:
        raise StageError(
            f"treatment {work.cell.treatment} chooses masks while it trains and has no stage "
            "prune; run retrain"
        )
    task = work.task(phase)
    model = work.model(phase, task)
    load(model, work.weights())
    masks = find_masks(model, treatment.pattern, treatment.rule, treatment.keep_dense)
    kept = kept_magnitude(model, masks)
    masks.apply(model)
    explained = explain(model, treatment.rule, treatment.keep_dense)
    reasons = {layer.name: layer.reason for layer in explained}
    work.judge(phase, model, task)
    layers = [{**row, "reason": reasons.get(row["layer"], "")} for row in layer_sparsity(model)]
    rows = {"summary": summary(model), "layers": layers}
    rows |= {"kept_magnitude": kept, "storage": storage(model, masks)}
    work.write("pruned.safetensors", state(model))
    work.write_masks(masks)
    if phase != work.spec.last_phase:
        task = _judge_last(work, masks)
    return work.finish(work.spec.last_phase, task, masks, rows)


def _judge_last(work: Work, masks: Masks) -> Task:
    for name in work.spec.after_prune_point:
        masks = masks.renamed({"": work.spec.phases[name].prefix})
    last = work.spec.last_phase
    task = work.task(last)
    model = work.model(last, task)
    load(model, work.weights("final"))
    masks.fitted_to(model)[0].apply(model)
    work.judge(last, model, task)
    return task
