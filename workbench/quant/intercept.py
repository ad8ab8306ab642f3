"""Interception: matmuls, adds and attention of a running model, each with its name."""

from collections import Counter
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from workbench.quant.layers import layers, weights_of

Call = Callable[[Tensor, Tensor, Tensor | None], Tensor]  # input, weight, bias -> output

_LAYERS = {"linear"} | {f"conv{t}{n}d" for t in ("", "_transpose") for n in (1, 2, 3)}
_ADDS = ("add", "add_", "__iadd__")
_RECURRENT = {"lstm", "gru", "lstm_cell", "gru_cell"}


class Choices(Protocol):
    """Which operations beside the layers are INT8: `quantize` of a spec."""

    attention: bool
    adds: bool


class Interception(TorchFunctionMode):
    """While its block runs, hands each operation of the model to a method; the others pass.

    Layers go by their module's name, whatever calls them. Adds, products and attention are named
    by the module that runs them and their order in it, as `layer1.0:add0`; outside of any module's
    forward they pass. An add counts if its operands are activations of one shape.
    """

    def __init__(self, model: nn.Module, choices: Choices) -> None:
        """Nothing is intercepted before the block is entered."""
        super().__init__()
        self.model, self.choices = model, choices
        self.layers = layers(model)
        self._owners = {
            id(weight): (name, parameter)
            for name, module in self.layers.items()
            for parameter, weight in weights_of(name, module).items()
        }
        self._running: list[tuple[str, Counter]] = []
        self._handles: list[Any] = []

    def activation(self, site: str, values: Tensor) -> Tensor:
        """What an operation gets for an activation."""
        return values

    def layer(self, name: str, parameter: str, call: Call, *operands: Tensor | None) -> Tensor:
        """The output of a layer; `call` computes it from (input, weight, bias)."""
        values, weight, bias = operands
        return call(self.activation(name, values), weight, bias)

    def recurrent(self, name: str, kind: str, call: Callable[..., Any], arguments: tuple) -> Any:
        """The outputs of an LSTM or GRU, layers and steps in one call."""
        return call(*arguments)

    def product(self, site: str, left: Tensor, right: Tensor) -> Tensor:
        """The matrix product of two activations."""
        left, right = self.activation(f"{site}.left", left), self.activation(f"{site}.right", right)
        return left @ right

    def attention(self, site: str, call: Callable[..., Tensor], arguments: dict) -> Tensor:
        """The output of scaled_dot_product_attention."""
        return call(**arguments)

    def add(self, site: str, left: Tensor, right: Tensor) -> Tensor:
        """The sum of two activations."""
        return self.activation(f"{site}.left", left) + self.activation(f"{site}.right", right)

    def __enter__(self) -> "Interception":
        """Follow which module runs, and intercept."""
        for name, module in self.model.named_modules():
            self._handles += [
                module.register_forward_pre_hook(self._entered(name)),
                module.register_forward_hook(self._left, always_call=True),
            ]
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        """Leave the model as it was."""
        super().__exit__(*error)
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._running.clear()

    def __torch_function__(
        self, func: Any, types: Any, args: tuple = (), kwargs: Any = None
    ) -> Any:
        """Route a call by its name."""
        kwargs, name = kwargs or {}, getattr(func, "__name__", "")
        if name in _LAYERS:
            return self._layer(func, *args, **kwargs)
        if name in _RECURRENT:
            return self._recurrent(func, name, args)
        if self._running and self.choices.attention:
            if name in ("matmul", "bmm", "__matmul__") and _activations(args):
                return self.product(self._site("matmul"), *args)
            if name == "scaled_dot_product_attention":
                names = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal")
                given = dict(zip(names, args, strict=False)) | kwargs
                return self.attention(self._site("attention"), func, given)
        if self._running and self.choices.adds and name in _ADDS and _are_added(args, kwargs):
            total = self.add(self._site("add"), *args)
            return total if name == "add" else args[0].copy_(total)
        return func(*args, **kwargs)

    @property
    def running(self) -> str:
        """The name of the innermost module that runs; "" outside of any."""
        return self._running[-1][0] if self._running else ""

    def _layer(
        self, func: Any, input: Tensor, weight: Tensor, bias: Any = None, *rest: Any, **named: Any
    ) -> Tensor:
        owner = self._owners.get(id(weight))
        if owner is None or not input.numel():
            return func(input, weight, bias, *rest, **named)

        def call(values: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
            return func(values, weight, bias, *rest, **named)

        return self.layer(*owner, call, input, weight, bias)

    def _recurrent(self, func: Any, kind: str, args: tuple) -> Any:
        flat = [w for a in args for w in (a if isinstance(a, list | tuple) else [a])]
        names = {self._owners[id(w)][0] for w in flat if id(w) in self._owners}
        return self.recurrent(names.pop(), kind, func, args) if names else func(*args)

    def _site(self, kind: str) -> str:
        name, counted = self._running[-1]
        counted[kind] += 1
        return f"{name}:{kind}{counted[kind] - 1}"

    def _entered(self, name: str) -> Callable[..., None]:
        def enter(*_: Any) -> None:
            self._running.append((name, Counter()))

        return enter

    def _left(self, *_: Any) -> None:
        self._running.pop()


def _activations(args: tuple) -> bool:
    return len(args) == 2 and all(
        isinstance(a, Tensor)
        and not isinstance(a, nn.Parameter)
        and a.is_floating_point()
        and a.ndim > 1
        and a.numel()
        for a in args
    )


def _are_added(args: tuple, kwargs: dict) -> bool:
    return not kwargs and _activations(args) and args[0].shape == args[1].shape


def output_dtype(values: Tensor) -> torch.dtype:
    """The type in which a layer answers such an input: autocast's, or the input's."""
    device = values.device.type
    if torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return values.dtype


def as_answered(answer: Any, values: Tensor) -> Any:
    """What an unrolled LSTM gave, a tensor or several, in the type of a fused one."""
    dtype = output_dtype(values)
    return answer.to(dtype) if isinstance(answer, Tensor) else tuple(a.to(dtype) for a in answer)
