"""Stage quantize: post-training INT8 of the final network, its zeros counted in the integers."""

from workbench import quant
from workbench.record import Record
from workbench.stages.dense import NO_MASKS
from workbench.stages.work import Work, load
from workbench.tasks.base import moved


def run(work: Work) -> Record:
    """Calibrate on training batches, quantize, evaluate; writes the integers and their scales."""
    phase = work.spec.last_phase
    task = work.task(phase)
    model = work.model(phase, task)
    load(model, work.weights())
    masks = work.masks() or NO_MASKS
    masks.verify(model)
    with work.judging(model):
        device, carry = work.accelerator.device, None
        with quant.observing(model, work.spec.quantize) as observed:
            for batch in task.training_batches(0, work.spec.quantize.batches):
                carry = task.run(model, moved(batch, device), carry)
        ranges = quant.ranges(observed)
    quantized = quant.quantize(model, ranges)
    with quant.simulated(model, quantized):
        work.judge(phase, model, task)
    work.write("int8.safetensors", quantized.tensors())
    work.notes["calibrator"] = work.spec.quantize.model_dump()
    work.notes["kept_fp"] = sorted(set(quant.layers(model)) - set(quantized.weights))
    return work.finish(phase, task, masks, {"integers": quant.zeros(quantized, masks)})
