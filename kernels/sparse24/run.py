"""Running a model on examples: tensors, tuples of arguments or mappings of named ones."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

Example = Tensor | tuple[Any, ...] | Mapping[str, Any]


def run(model: nn.Module, example: Example | list[Example]) -> None:
    """Run the model on one example, or on each of a list, without gradients.

    The floats of an example are cast to the model's type.
    """
    for each in example if isinstance(example, list) else [example]:
        _run(model, each)


def _run(model: nn.Module, example: Example) -> None:
    dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), None)

    def cast(leaf: Any) -> Any:
        floats = isinstance(leaf, Tensor) and leaf.is_floating_point() and dtype is not None
        return leaf.to(dtype) if floats else leaf

    with torch.no_grad():
        if isinstance(example, Mapping):
            model(**{name: tree_map(cast, value) for name, value in example.items()})
        else:
            model(*tree_map(cast, example if isinstance(example, tuple) else (example,)))


def sizes(model: nn.Module, example: Example | list[Example]) -> dict[str, set]:
    """What layers get when the model runs the examples, by name.

    Of a Conv2d images (batch, height, width), of a Linear numbers of rows.
    """
    found: dict[str, set] = {}
    handles = []
    for name, layer in model.named_modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            handles.append(layer.register_forward_pre_hook(_noting(found.setdefault(name, set()))))
    try:
        run(model, example)
    finally:
        for handle in handles:
            handle.remove()
    return found


def _noting(found: set) -> Any:
    def note(layer: nn.Module, given: tuple[Any, ...]) -> None:
        batch, *rest = given[0].shape
        if isinstance(layer, nn.Conv2d):
            found.add((batch, *rest[1:]))
        else:
            found.add(given[0].numel() // max(1, layer.in_features))

    return note
