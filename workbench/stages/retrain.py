"""Stage retrain: repeat the recipe from the prune point with the same hyper-parameters."""

from workbench.record import Record
from workbench.sparsity import summary
from workbench.stages.choosing import flips
from workbench.stages.dense import NO_MASKS, Trained, train_phases
from workbench.stages.weights import state
from workbench.stages.work import Work


def run(work: Work) -> Record:
    """Retrain; writes the final weights and the masks that they keep.

    A treatment with a schedule chooses its masks here, from the dense network or from scratch.
    """
    chooses = work.spec.treatment.schedule is not None
    trained = _choose(work) if chooses else _hold(work)
    trained.masks.verify(trained.model)
    work.agree(trained.masks)
    work.write("final.safetensors", state(trained.model))
    work.write_masks(trained.masks)
    work.write_curve(trained.rows)
    rows = {"summary": summary(trained.model)}
    if chooses:
        rows["schedule"] = flips(trained.rows)
    return work.finish(work.spec.last_phase, trained.task, trained.masks, rows)


def _hold(work: Work) -> Trained:
    weights, masks = work.weights(), work.masks()
    masks.verify_tensors(weights)
    return train_phases(work, work.spec.retraining, weights, masks)


def _choose(work: Work) -> Trained:
    start = None if work.spec.from_scratch else work.weights()
    return train_phases(work, work.spec.retraining, start, NO_MASKS, work.spec.repeat_from)
