"""swap: every 2:4 layer of a model replaced where that is faster."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from .dispatch import TOKENS, tune
from .layout import PackError
from .nn import SparseLinear


@dataclass(frozen=True)
class Layer:
    """What swap did with one layer, and why."""

    name: str
    kind: str
    shape: tuple[int, ...]
    swapped: bool
    reason: str
    times: tuple[tuple[int, float | None, float | None], ...] = ()  # tokens, dense us, ours us


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
    model: nn.Module, tokens: Sequence[int] = TOKENS, measure: bool | None = None, **tuning: Any
) -> Table:
    """Replace, in place, each Linear of a model that is 2:4 by a SparseLinear; a row for each.

    `tokens`: how many rows the layers will see at once. Where the weights lie on a GPU (or with
    `measure=True`) each shape is measured at these sizes, once per device, and `linear` takes what
    was fastest; a layer where dense wins at every size stays as it is. Nothing else changes:
    layers that are not 2:4, of other types or with a shared weight are listed with the reason.
    """
    if isinstance(model, nn.Linear):
        raise ValueError("the model is a Linear itself; use SparseLinear.of(model)")
    table = Table()
    shared = _shared(model)
    for name, layer in list(model.named_modules()):
        if not isinstance(layer, nn.Linear):
            continue
        done, new = _swapped(name, layer, shared.get(name), tokens, measure, tuning)
        if new is not None:
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, new)
        table.append(done)
    return table


def _swapped(
    name: str,
    layer: nn.Linear,
    other: str | None,
    tokens: Sequence[int],
    measure: bool | None,
    tuning: dict[str, Any],
) -> tuple[Layer, SparseLinear | None]:
    kind, shape = type(layer).__name__, tuple(layer.weight.shape)

    def left(reason: str, times: tuple = ()) -> tuple[Layer, None]:
        return Layer(name, kind, shape, False, reason, times), None

    if type(layer) is not nn.Linear:
        return left(f"a {kind}, whose owner may read its weight: only nn.Linear is replaced")
    if other is not None:
        return left(f"its weight is also that of {other}")
    try:
        new = SparseLinear.of(layer)
    except PackError as error:
        return left(str(error))
    if not (layer.weight.is_cuda if measure is None else measure):
        return Layer(name, kind, shape, True, "2:4, not measured"), new
    w = tune(new.weight, tokens, layer.bias is not None, dense=layer.weight, **tuning)
    (rungs,) = w.tuned.values()
    times = tuple(_times(rung) for rung in rungs)
    if {rung.choice.backend for rung in rungs} == {"dense"}:
        return left("2:4, but dense is the fastest at every size measured", times)
    shown = ", ".join(f"{rung.tokens}: {_gain(rung)}" for rung in rungs)
    return Layer(name, kind, shape, True, f"2:4; tokens: {shown}", times), new


def _times(rung: Any) -> tuple[int, float | None, float | None]:
    found = {trial.choice.backend: trial.timing.median_us for trial in reversed(rung.trials)}
    return rung.tokens, found.get("dense"), found.get("sparse24")


def _gain(rung: Any) -> str:
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
