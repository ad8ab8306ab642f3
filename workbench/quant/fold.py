"""Folding: batch norms that follow a convolution become part of its weight and bias.

Which norm follows which layer is read from a run of the model, not from its source, so detectors
and other networks that cannot be traced are folded too. A pruned weight stays zero: folding
multiplies an output channel.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from workbench.quant.intercept import Call, Interception
from workbench.quant.layers import RECURRENT
from workbench.sparsity.layouts import TRANSPOSED

_MARK = "_workbench_layer"  # on a layer's output: the layer's name


class Following(Interception):
    """While the block runs the model in eval: which norms see a layer's output, and only they."""

    def __init__(self, model: nn.Module) -> None:
        """Nothing has run yet."""
        super().__init__(model, SimpleNamespace(attention=False, adds=False))
        self.norms = {name: m for name, m in model.named_modules() if _is_norm(m)}
        self._made: Counter[str] = Counter()
        self._taken: Counter[tuple[str, str]] = Counter()
        self._elsewhere: set[str] = set()

    def layer(self, name: str, parameter: str, call: Call, *operands: Tensor | None) -> Tensor:
        """The layer's output, marked."""
        output = call(*operands)
        self._made[name] += 1
        setattr(output, _MARK, name)
        return output

    def __torch_function__(
        self, func: Any, types: Any, args: tuple = (), kwargs: Any = None
    ) -> Any:
        """Note who else uses a marked output; asking for its shape is not a use."""
        result = super().__torch_function__(func, types, args, kwargs)
        is_use = isinstance(result, Tensor | tuple | list) and not isinstance(result, torch.Size)
        if is_use and self.running not in self.norms:
            for value in _tensors((*args, *(kwargs or {}).values())):
                if name := getattr(value, _MARK, None):
                    self._elsewhere.add(name)
        return result

    def pairs(self) -> dict[str, str]:
        """Norm -> layer where each runs only for the other."""
        taken, norms = Counter(), Counter()
        for (name, norm), count in self._taken.items():
            taken[name] += count
            norms[norm] += count
        return {
            norm: name
            for (name, norm), count in self._taken.items()
            if name and count == self._made[name] == taken[name] == norms[norm]
            if name not in self._elsewhere
            if _can_fold(self.layers[name])
        }

    def _entered(self, name: str) -> Any:
        enter = super()._entered(name)

        def entered(module: nn.Module, inputs: tuple) -> None:
            enter()
            if name in self.norms:
                self._taken[getattr(inputs[0], _MARK, ""), name] += 1

        return entered


@torch.no_grad()
def fold(model: nn.Module, pairs: Mapping[str, str]) -> None:
    """Put each norm into its layer, in place, and an identity in the norm's place."""
    for norm, name in pairs.items():
        layer, statistics = model.get_submodule(name), model.get_submodule(norm)
        weight, bias = fuse_conv_bn_weights(
            *(_exact(layer, key) for key in ("weight", "bias")),
            *(_exact(statistics, key) for key in ("running_mean", "running_var")),
            statistics.eps,
            *(_exact(statistics, key) for key in ("weight", "bias")),
            transpose=isinstance(layer, TRANSPOSED),
        )
        layer.weight.copy_(weight)
        layer.bias = nn.Parameter(bias.to(layer.weight.dtype))
    strip(model, pairs)


def strip(model: nn.Module, pairs: Mapping[str, str]) -> None:
    """Give the model the modules of a folded one: identities for norms, biases for layers."""
    for norm, name in pairs.items():
        layer, statistics = model.get_submodule(name), model.get_submodule(norm)
        for parent, key in list(_places(model, statistics)):
            setattr(parent, key, nn.Identity().train(statistics.training))
        if layer.bias is None:
            layer.bias = nn.Parameter(layer.weight.new_zeros(len(statistics.running_mean)))


def _is_norm(module: nn.Module) -> bool:
    # by what it has, since torchvision's FrozenBatchNorm2d derives from no norm of torch's
    kept = ("running_mean", "running_var", "weight", "bias", "eps")
    instance = isinstance(module, nn.modules.instancenorm._InstanceNorm)
    return not instance and all(getattr(module, key, None) is not None for key in kept)


def _can_fold(layer: nn.Module) -> bool:
    grouped_transposed = isinstance(layer, TRANSPOSED) and layer.groups > 1
    return not isinstance(layer, (*RECURRENT, nn.Linear)) and not grouped_transposed


def _exact(module: nn.Module, key: str) -> Tensor | None:
    value = getattr(module, key)
    return None if value is None else value.detach().double()


def _places(model: nn.Module, wanted: nn.Module) -> Iterator[tuple[nn.Module, str]]:
    for module in model.modules():
        for key, child in module.named_children():
            if child is wanted:
                yield module, key


def _tensors(values: Any) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from _tensors(value)
