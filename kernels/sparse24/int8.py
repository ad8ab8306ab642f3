"""INT8 between layers: ranges of activations from an example, and who gives int8 to whom."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.overrides import TorchFunctionMode

from .packed_layer import PackedLayer
from .rounding import LEVELS
from .run import Example, run
from .tracing import whole_graph

_ADDS = ("add", "add_", "__add__", "__iadd__")


def calibrate(model: nn.Module, example: Example | list[Example]) -> dict[str, float]:
    """The steps for `swap(..., "int8", scales=...)`: largest magnitude / 127 in the examples.

    By name: `<layer>` of the input of a Linear or Conv2d; `<module>:add<n>.left` and `.right` of
    the operands of the adds that a module runs, in their order.
    """
    with _Ranges(model) as seen:
        run(model, example)
    found = {name: float(largest) for name, largest in seen.largest.items()}
    if broken := [name for name, largest in found.items() if not largest < float("inf")]:
        raise ValueError(
            f"the input of {broken[0]} is NaN or infinite in the example: the model or the example "
            "is broken before quantization"
        )
    # as float32, in which the kernels and a checkpoint hold it
    steps = {name: torch.tensor(found[name]) / LEVELS for name in found if found[name]}
    return {name: step.item() for name, step in steps.items()}


def refuse_unknown(model: nn.Module, scales: Mapping[str, float | Tensor]) -> None:
    """Raise ValueError for a name of `scales` that the model does not have."""
    known = {name for name, _ in model.named_modules()} | {n for n, _ in model.named_parameters()}
    for name in scales:
        owner = name.partition(":")[0].removesuffix(".hidden")
        if owner not in known:
            near = get_close_matches(owner, known, 1)
            raise ValueError(
                f"scales name {name!r}; the model has no module {owner!r}"
                + (f": is it {near[0]!r}?" if near else "")
            )


def connect(model: nn.Module) -> bool:
    """Let each INT8 layer whose result only INT8 layers of one step read give int8 of that step.

    What is read elsewhere, or by an add whose step is not known, stays a float. False if the model
    cannot be traced whole, so that nothing is known and all results stay floats.
    """
    graph = whole_graph(model)
    if graph is None:
        return False
    uses: dict[PackedLayer, list[float | None]] = defaultdict(list)
    added = Counter()
    for node in graph.nodes:
        layer = _int8_layer(node, model)
        if layer is not None:
            uses[layer] += _steps(node, model)
            added[layer] += node.kwargs.get("residual") is not None
    for layer, steps in uses.items():
        known = not added[layer] or layer.scales.residual is not None
        layer.emit(steps[0] if known and len(set(steps)) == 1 else None)
    return True


def _steps(node: fx.Node, model: nn.Module) -> Iterable[float | None]:
    """In which step each reader of a result takes it, None where as a float."""
    found = []
    for user in node.users:
        layer = _int8_layer(user, model)
        if layer is not None:
            if user.kwargs.get("residual") is node:
                found.append(layer.scales.residual)
            if node in user.args:
                found.append(layer.scales.x)
        elif _passes(user, model):
            found += _steps(user, model)
        else:
            found.append(None)
    return found


def _int8_layer(node: fx.Node, model: nn.Module) -> PackedLayer | None:
    layer = model.get_submodule(node.target) if node.op == "call_module" else None
    return layer if isinstance(layer, PackedLayer) and layer.scales is not None else None


def _passes(node: fx.Node, model: nn.Module) -> bool:
    """Whether a node gives what it gets."""
    if node.op != "call_module":
        return False
    layer = model.get_submodule(node.target)
    return type(layer) is nn.Identity or (type(layer) is nn.Dropout and not layer.training)


class _Ranges(TorchFunctionMode):
    """The largest magnitudes of what layers and adds get while the block runs a model."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.largest: dict[str, Tensor] = {}
        self._running: list[tuple[str, Counter]] = []
        self._handles: list[Any] = []

    def __enter__(self) -> "_Ranges":
        for name, module in self.model.named_modules():
            self._handles += [
                module.register_forward_pre_hook(self._entered(name)),
                module.register_forward_hook(self._left, always_call=True),
            ]
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        for handle in self._handles:
            handle.remove()

    def __torch_function__(
        self, func: Any, types: Any, args: tuple = (), kwargs: Any = None
    ) -> Any:
        if self._running and getattr(func, "__name__", "") in _ADDS and _are_added(args, kwargs):
            name, counted = self._running[-1]
            site = f"{name}:add{counted['add']}"
            counted["add"] += 1
            self._see(f"{site}.left", args[0])
            self._see(f"{site}.right", args[1])
        return func(*args, **(kwargs or {}))

    def _see(self, name: str, values: Tensor) -> None:
        with torch._C.DisableTorchFunction():
            largest = values.detach().abs().amax().float()
            before = self.largest.get(name)
            self.largest[name] = largest if before is None else torch.maximum(before, largest)

    def _entered(self, name: str) -> Any:
        def entered(module: nn.Module, inputs: tuple) -> None:
            self._running.append((name, Counter()))
            if isinstance(module, nn.Linear | nn.Conv2d) and inputs and inputs[0].numel():
                self._see(name, inputs[0])

        return entered

    def _left(self, *_: Any) -> None:
        self._running.pop()


def _are_added(args: tuple, kwargs: dict | None) -> bool:
    """Whether two activations of one shape are added, as workbench.quant counts them."""
    return (
        not kwargs
        and len(args) == 2
        and all(isinstance(a, Tensor) and not isinstance(a, nn.Parameter) for a in args)
        and all(a.is_floating_point() and a.ndim > 1 and a.numel() for a in args)
        and args[0].shape == args[1].shape
    )
