"""Stage prune: one magnitude pruning of the dense weights, and what it costs before retraining."""

from workbench.record import Record
from workbench.sparsity import explain, layer_sparsity, prune, summary
from workbench.stages.work import Work, state, take


def run(work: Work) -> Record:
    """Prune; writes the pruned weights and the masks that retraining keeps."""
    phase, treatment = work.spec.repeat_from, work.spec.treatment
    task = work.task(phase)
    model = work.model(phase, task)
    take(model, work.weights())
    masks = prune(model, treatment.pattern, treatment.rule, treatment.keep_dense)
    explained = explain(model, treatment.rule, treatment.keep_dense)
    reasons = {layer.name: layer.reason for layer in explained}
    work.judge(phase, model, task)
    layers = [{**row, "reason": reasons.get(row["layer"], "")} for row in layer_sparsity(model)]
    work.write("pruned.safetensors", state(model))
    work.write_masks(masks)
    return work.finish(phase, task, masks, {"summary": summary(model), "layers": layers})
