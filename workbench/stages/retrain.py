"""Stage retrain: repeat the recipe from the prune point with the same hyper-parameters."""

from workbench.record import Record
from workbench.sparsity import summary
from workbench.stages.dense import train_phases
from workbench.stages.work import Work, state


def run(work: Work) -> Record:
    """Retrain; writes the final weights and the masks that they keep."""
    phases = {name: work.spec.retrained(name) for name in work.spec.repeated}
    weights, masks = work.weights(), work.masks()
    masks.verify_tensors(weights)
    trained = train_phases(work, phases, weights, masks)
    trained.masks.verify(trained.model)
    work.write("final.safetensors", state(trained.model))
    work.write_masks(trained.masks)
    work.write_curve(trained.rows)
    rows = {"summary": summary(trained.model)}
    record = work.finish(work.spec.last_phase, trained.task, trained.masks, rows)
    work.forget_resume()
    return record
