"""SparseLinear, and swap: every 2:4 Linear of a model replaced where that is faster."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from .dispatch import TOKENS, tune
from .layout import PackError
from .linear import linear
from .weight import SparseWeight, header, pack, read_header


class SparseLinear(nn.Module):
    """A Linear whose weight is packed; in a state dict it is `packed`, `header` and `bias`."""

    def __init__(
        self, weight: SparseWeight, bias: Tensor | None = None, activation: str | None = None
    ) -> None:
        """Takes the weight as it is; `activation` is computed in the same kernel."""
        super().__init__()
        self.activation = activation
        self.register_buffer("packed", weight.packed)
        self.register_buffer("header", header(weight))
        self.bias = None if bias is None else nn.Parameter(bias.detach(), bias.requires_grad)
        self._weight = weight

    @classmethod
    def of(cls, layer: nn.Linear) -> "SparseLinear":
        """The packed form of a 2:4 Linear; PackError if it is not 2:4."""
        return cls(pack(layer.weight), layer.bias).train(layer.training)

    @property
    def weight(self) -> SparseWeight:
        """The packed weight."""
        return self._weight

    @property
    def in_features(self) -> int:
        """Size of the input's last dimension."""
        return self._weight.in_features

    @property
    def out_features(self) -> int:
        """Size of the result's last dimension."""
        return self._weight.out_features

    def forward(self, x: Tensor) -> Tensor:
        """activation(x @ weight^T + bias), [..., out]."""
        return linear(x, self._weight, self.bias, self.activation)

    def dense(self) -> nn.Linear:
        """The Linear that was packed."""
        layer = nn.Linear(self.in_features, self.out_features, self.bias is not None, "meta")
        layer.weight = nn.Parameter(self._weight.unpack(), requires_grad=False)
        layer.bias = self.bias
        return layer.train(self.training)

    def extra_repr(self) -> str:
        """The weight's text."""
        after = f", activation={self.activation!r}" if self.activation else ""
        return f"{self._weight!r}, bias={self.bias is not None}{after}"

    def _apply(self, fn: Callable[[Tensor], Tensor], *args: Any, **kwargs: Any) -> "SparseLinear":
        super()._apply(fn, *args, **kwargs)
        self._follow()
        return self

    def _load_from_state_dict(
        self, state_dict: Mapping[str, Tensor], prefix: str, *args: Any
    ) -> None:
        given = state_dict.get(prefix + "header")
        if given is not None:
            told = read_header(given)
            own = tuple(self._weight.shape), self._weight.dtype, self._weight.sparse
            if told != own:
                raise PackError(f"{prefix}header says {told}; this layer's weight is {own}")
        super()._load_from_state_dict(state_dict, prefix, *args)
        self._follow()

    def _follow(self) -> None:
        """Buffers may have been moved or replaced: the weight is what they hold now."""
        old = self._weight
        if old.packed is not self.packed:
            self._weight = SparseWeight(self.packed, tuple(old.shape), old.dtype, old.sparse)


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
