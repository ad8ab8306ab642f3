"""A graph on the CPU: operations are recorded with the tensors they read, and replayed in place.

As a CUDA graph, it knows nothing of Python: numbers are what they were while recording, a question
to the device is an error, and recording itself changes nothing.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

ASKS = {torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default}


def tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


class Recording(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple] = []
        self.before: dict[int, tuple[Tensor, Tensor]] = {}  # inputs, and copies of them
        self.made: set[int] = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # noqa: ANN001, ANN204
        if function in ASKS:
            raise RuntimeError(f"operation not permitted when stream is capturing: {function}")
        kwargs = kwargs or {}
        given = tensors((args, kwargs))
        for tensor in given:
            place = tensor.untyped_storage().data_ptr()
            if place not in self.made and place not in self.before:
                self.before[place] = (tensor.detach(), tensor.detach().clone())
        result = function(*args, **kwargs)
        places = {tensor.untyped_storage().data_ptr() for tensor in given}
        fresh = [out.untyped_storage().data_ptr() not in places for out in tensors(result)]
        self.made |= {out.untyped_storage().data_ptr() for out in tensors(result)} - places
        self.calls.append((function, args, kwargs, result, fresh))
        return result

    @torch.no_grad()
    def replay(self) -> None:
        for function, args, kwargs, result, fresh in self.calls:
            if any(fresh) or function._schema.is_mutable:  # a view is one already
                again = tensors(function(*args, **kwargs))
                for old, new, own in zip(tensors(result), again, fresh, strict=True):
                    if own:
                        old.detach().copy_(new)


def captured(step: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
    """What `workbench.training.graph.captured` returns, of the CPU."""
    random, recording = torch.get_rng_state(), Recording()
    with recording:
        loss = step()
    torch.set_rng_state(random)
    with torch.no_grad():
        for tensor, copy in recording.before.values():
            tensor.copy_(copy)
    return recording.replay, loss
