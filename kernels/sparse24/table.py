"""Table: what swap did with each layer, and what was measured of it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .candidates import Rung
from .dispatch import TOKENS, tune, tune_conv2d
from .nn import SparseConv2d
from .packed_layer import PackedLayer
from .scales import Scales

Images = tuple[int, int, int]  # batch, height, width
Times = tuple[tuple[int, float | None, float | None], ...]


@dataclass(frozen=True)
class Layer:
    """What swap did with one layer, and why."""

    name: str
    kind: str
    shape: tuple[int, ...]
    swapped: bool
    reason: str
    times: Times = ()  # count, dense us, ours us


class Table(list[Layer]):
    """The layers of a model; its text is one line for each."""

    def __str__(self) -> str:
        """Name, shape, sparse or dense, and the reason with times."""
        width = max((len(layer.name) for layer in self), default=4)
        lines = []
        for layer in self:
            shape = "x".join(map(str, layer.shape))
            state = "sparse" if layer.swapped else "dense"
            lines.append(f"{layer.name:<{width}}  {shape:>12}  {state:<7} {layer.reason}")
        count = sum(layer.swapped for layer in self)
        return "\n".join([*lines, f"{count} of {len(self)} layers are sparse"])


class Given(NamedTuple):
    """What swap was called with, and the sizes that layers got of its example."""

    dtype: torch.dtype | None  # of floats; None: as they are
    scales: Mapping[str, float | Tensor] | None  # of an INT8 network
    tokens: Sequence[int] | None
    sizes: Mapping[str, set[int | Images]]
    measure: bool | None
    tuning: dict[str, Any]

    def measures(self, weight: Tensor) -> bool:
        """Whether a layer is to be measured."""
        return weight.is_cuda if self.measure is None else self.measure

    def rows(self, name: str) -> Sequence[int]:
        """The numbers of tokens at which a Linear is measured."""
        return self.tokens or sorted(self.sizes.get(name, ())) or TOKENS

    def counts(self, name: str, layer: nn.Module) -> Sequence[int | Images]:
        """The numbers of tokens, or the images, at which a layer is measured; it may be none."""
        if isinstance(layer, nn.Conv2d | SparseConv2d):
            return sorted(self.sizes.get(name, ()))
        return self.rows(name)

    def scales_of(self, name: str, weight: Tensor, addend: str | None = None) -> Scales | None:
        """The steps of an INT8 layer; None for one that has none and stays in floats."""
        if self.scales is None or name not in self.scales:
            return None
        steps = self.scales.get(f"{name}.weight")
        if steps is None:
            steps = weight.detach().float().flatten(1).abs().amax(1) / 127
        added = None if addend is None else self.scales.get(addend)
        return Scales(steps, float(self.scales[name]), residual=added and float(added))


def measured(
    layer: PackedLayer, residual: bool, sizes: Sequence, given: Given, dense: Tensor | None = None
) -> tuple[bool, str, Times]:
    """Whether a packed layer is anywhere faster than dense, the reason and the times.

    Its weight takes what is fastest. `sizes` are numbers of tokens or images; `dense` is the dense
    weight, unpacked where it is not given.
    """
    scales, out = layer.call_scales, None if layer.scales is None else layer.result
    epilogue = layer.bias is not None, layer.activation, residual, out, scales, dense
    if isinstance(layer, SparseConv2d):
        _, *walk = layer.geometry
        w = tune_conv2d(layer.weight, sizes, *walk, *epilogue, **given.tuning)
        rungs = [r for t in (w.tuned, w.matrix.tuned) for found in t.values() for r in found]
        return _verdict(rungs, "pixels" if w.matrix.tuned else "images")
    w = tune(layer.weight, sizes, *epilogue, **given.tuning)
    (rungs,) = w.tuned.values()
    return _verdict(rungs, "tokens")


def _verdict(rungs: Sequence[Rung], what: str) -> tuple[bool, str, Times]:
    times = tuple(_times(rung) for rung in rungs)
    if {rung.choice.backend for rung in rungs} == {"dense"}:
        return False, "2:4, but dense is the fastest at every size measured", times
    shown = ", ".join(f"{rung.tokens}: {_gain(rung)}" for rung in rungs)
    return True, f"2:4; {what}: {shown}", times


def _times(rung: Rung) -> tuple[int, float | None, float | None]:
    found = {trial.choice.backend: trial.timing.median_us for trial in reversed(rung.trials)}
    return rung.tokens, found.get("dense"), found.get("sparse24")


def _gain(rung: Rung) -> str:
    """The chosen backend and how much faster than dense it was."""
    found = {trial.choice: trial.timing.median_us for trial in rung.trials}
    _, dense, _ = _times(rung)
    name = rung.choice.backend
    return f"{name} {dense / found[rung.choice]:.2f}x" if dense and rung.choice in found else name
