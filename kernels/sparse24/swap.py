"""swap: every 2:4 layer of a model replaced where that is faster."""

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from . import fusion
from .candidates import Rung
from .dispatch import TOKENS, tune, tune_conv2d
from .geometry import GeometryError
from .layout import PackError
from .nn import SparseConv2d, SparseLinear


@dataclass(frozen=True)
class Layer:
    """What swap did with one layer, and why."""

    name: str
    kind: str
    shape: tuple[int, ...]
    swapped: bool
    reason: str
    times: tuple[tuple[int, float | None, float | None], ...] = ()  # count, dense us, ours us


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


def swap(
    model: nn.Module,
    tokens: Sequence[int] = TOKENS,
    measure: bool | None = None,
    example: Tensor | tuple[Any, ...] | None = None,
    **tuning: Any,
) -> Table:
    """Replace, in place, each Linear and Conv2d of a model that is 2:4 by its packed form.

    The batch norm behind a convolution of a model in eval mode is folded into it, dense or packed;
    into a packed one go the ReLU and the residual's add too, where fusion.py finds that safe (it
    puts a traced copy in the place of a block whose forward changes). Layers that are not 2:4, of
    other types or with a shared weight stay, with the reason in their row of the table.

    Where the weights lie on a GPU (or with `measure=True`) each shape is measured, once per device,
    and what was fastest runs; a layer where dense wins at every size stays dense. Linears are
    measured at `tokens`, the numbers of rows they will see; convolutions at the sizes of images
    that they get when the model runs `example` (a batch, or a tuple of arguments), without which
    they are not measured.
    """
    if isinstance(model, nn.Linear | nn.Conv2d):
        name = type(model).__name__
        raise ValueError(f"the model is a {name} itself; use Sparse{name}.of(model)")
    images = {} if example is None else seen(model, example)
    chains, table, done = fusion.find(model), Table(), []
    shared = _shared(model)
    given = _Given(tokens, measure, tuning)
    for name, layer in list(model.named_modules()):
        if isinstance(layer, nn.Linear):
            row, new = _swapped(name, layer, shared.get(name), given)
            if new is not None:
                fusion.place(model, name, new)
            table.append(row)
        elif isinstance(layer, nn.Conv2d):
            chain = chains.get(layer)
            row, new = _convolved(name, layer, shared.get(name), given, chain, images.get(layer))
            if new is not None and chain is not None:
                done.append((chain, new, row.swapped))
            elif new is not None:
                fusion.place(model, name, new)
            table.append(row)
    fusion.apply(model, done)
    return table


def seen(
    model: nn.Module, example: Tensor | tuple[Any, ...]
) -> dict[nn.Module, set[tuple[int, int, int]]]:
    """The images (batch, height, width) that each Conv2d gets when the model runs the example."""
    found: dict[nn.Module, set[tuple[int, int, int]]] = {}

    def note(layer: nn.Module, given: tuple[Any, ...]) -> None:
        batch, _, height, width = given[0].shape
        found.setdefault(layer, set()).add((batch, height, width))

    hooks = [
        layer.register_forward_pre_hook(note)
        for layer in model.modules()
        if isinstance(layer, nn.Conv2d)
    ]
    try:
        with torch.no_grad():
            model(*example) if isinstance(example, tuple) else model(example)
    finally:
        for hook in hooks:
            hook.remove()
    return found


class _Given(NamedTuple):
    """What swap was called with."""

    tokens: Sequence[int]
    measure: bool | None
    tuning: dict[str, Any]

    def measures(self, weight: Tensor) -> bool:
        """Whether a layer is to be measured."""
        return weight.is_cuda if self.measure is None else self.measure


def _swapped(
    name: str, layer: nn.Linear, other: str | None, given: _Given
) -> tuple[Layer, SparseLinear | None]:
    row = partial(Layer, name, type(layer).__name__, tuple(layer.weight.shape))
    if reason := _owned(layer, nn.Linear, other):
        return row(False, reason), None
    try:
        new = SparseLinear.of(layer)
    except PackError as error:
        return row(False, str(error)), None
    if not given.measures(layer.weight):
        return row(True, "2:4, not measured"), new
    bias = layer.bias is not None
    w = tune(new.weight, given.tokens, bias, dense=layer.weight, **given.tuning)
    (rungs,) = w.tuned.values()
    swapped, reason, times = _verdict(rungs, "tokens")
    return row(swapped, reason, times), new if swapped else None


def _convolved(
    name: str,
    layer: nn.Conv2d,
    other: str | None,
    given: _Given,
    chain: fusion.Chain | None,
    images: set[tuple[int, int, int]] | None,
) -> tuple[Layer, nn.Module | None]:
    """The row of a convolution and what takes its place, the batch norm folded into it."""
    row = partial(Layer, name, type(layer).__name__, tuple(layer.weight.shape))
    if reason := _owned(layer, nn.Conv2d, other):
        return row(False, reason), None
    folds = chain is not None and chain.norm is not None
    if folds:
        layer = copy(layer)  # shares all but what is folded
        layer._parameters = dict(layer._parameters)
        layer.weight, layer.bias = chain.folded()
    after = "; batch norm folded" if folds else ""
    activation = "relu" if chain is not None and chain.relu is not None else None
    try:
        new = SparseConv2d.of(layer, activation)
    except (PackError, GeometryError) as error:
        return row(False, f"{error}{after}"), layer if folds else None
    residual = chain is not None and chain.add is not None
    after += "".join(f"; {what} fused" for what in ("residual",) if residual)
    after += f"; {activation} fused" if activation else ""
    if not given.measures(layer.weight):
        return row(True, f"2:4, not measured{after}"), new
    if not images:
        return row(True, f"2:4, not measured: swap got no example that reaches it{after}"), new
    epilogue = layer.bias is not None, activation, residual
    walk = layer.stride, layer.padding, layer.dilation
    w = tune_conv2d(new.weight, images, *walk, *epilogue, dense=layer.weight, **given.tuning)
    rungs = [
        rung for tuned in (w.tuned, w.matrix.tuned) for found in tuned.values() for rung in found
    ]
    swapped, reason, times = _verdict(rungs, "pixels" if w.matrix.tuned else "images")
    if not swapped:
        return row(False, f"{reason}{after}" if folds else reason, times), layer if folds else None
    return row(True, f"{reason}{after}", times), new


def _owned(layer: nn.Module, kind: type[nn.Module], other: str | None) -> str:
    """Why a layer is not to be replaced whatever its weight is."""
    if type(layer) is not kind:
        own = type(layer).__name__
        return f"a {own}, whose owner may read its weight: only nn.{kind.__name__} is replaced"
    return "" if other is None else f"its weight is also that of {other}"


def _verdict(rungs: Sequence[Rung], what: str) -> tuple[bool, str, tuple]:
    """Whether to replace a layer that was measured, the reason and the times."""
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


def _shared(model: nn.Module) -> dict[str, str]:
    """For each module whose weight another parameter is too: that parameter's name."""
    owners: dict[Tensor, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        owners.setdefault(parameter, []).append(name)
    found = {}
    for names in owners.values():
        for name in names if len(names) > 1 else ():
            module, _, last = name.rpartition(".")
            if last == "weight":
                found[module] = next(other for other in names if other != name)
    return found
