"""Calibration: observers on the inputs of every conv and linear layer, and their ranges."""

import contextlib
from collections.abc import Iterator
from typing import Protocol

from torch import Tensor, nn

from workbench.quant.observe import Max, Percentile, QuantError

QUANTIZED = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


class Settings(Protocol):
    """What calibration needs of a spec's `quantize` section."""

    calibrator: str
    percentile: float
    keep_fp16: tuple[str, ...]


Observers = dict[str, Max | Percentile]


def layers(model: nn.Module) -> dict[str, nn.Module]:
    """The layers with an INT8 form: conv and linear, but for those whose weight is an embedding."""
    tables = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, QUANTIZED) and id(module.weight) not in tables
    }


@contextlib.contextmanager
def observing(model: nn.Module, settings: Settings) -> Iterator[Observers]:
    """Observers that see every layer's input while the block runs the model."""
    chosen = layers(model)
    unknown = set(settings.keep_fp16) - set(chosen)
    if unknown:
        raise QuantError(
            f"quantize.keep_fp16 names {sorted(unknown)}; the layers are {', '.join(chosen)}"
        )
    observers: Observers = {
        name: Max() if settings.calibrator == "max" else Percentile(settings.percentile)
        for name in chosen
        if name not in settings.keep_fp16
    }

    def hook(name: str):  # noqa: ANN202 - a hook
        def see(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            if inputs[0].numel():
                observers[name].see(inputs[0])

        return see

    handles = [chosen[name].register_forward_pre_hook(hook(name)) for name in observers]
    try:
        yield observers
    finally:
        for handle in handles:
            handle.remove()


def ranges(observers: Observers) -> dict[str, float]:
    """The magnitude of each layer's input that becomes 127; layers that saw nothing are refused."""
    limits = {name: observer.limit() for name, observer in observers.items()}
    idle = [name for name, limit in limits.items() if limit <= 0]
    if idle:
        raise QuantError(
            f"no activation was seen, or only zeros, at {', '.join(idle)}; give more "
            "calibration batches, or name the layers in quantize.keep_fp16"
        )
    return limits
