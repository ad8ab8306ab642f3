"""Graphs: a model's calls as CUDA graphs, one for each shape of its inputs."""

from collections.abc import Callable, Hashable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import TreeSpec, tree_flatten, tree_leaves, tree_map, tree_unflatten

WARM_UPS = 3  # so that kernels are compiled, libraries loaded and workspaces there

Call = Callable[[], Any]


class GraphError(RuntimeError):
    """A call that cannot be a CUDA graph."""


class Recorded(NamedTuple):
    """A recorded call: what repeats it, and the result that each repeat writes anew."""

    replay: Callable[[], None]
    result: Any


class Graphs:
    """A callable that answers as the model: recorded at a shape's first call, replayed after.

    A recording is for the shapes, strides and types of the tensors and the values of all other
    arguments; inputs are copied into its own. The results are copies, or with `copies=False` the
    recording's own tensors, which the next call overwrites. On a CPU the model is called. The
    model must be in eval mode, and not be changed or moved afterwards: `forget` drops what was
    recorded.
    """

    def __init__(
        self,
        model: nn.Module,
        copies: bool = True,
        record: Callable[[Call], Recorded] | None = None,
    ) -> None:
        """`record` records a call; by default `cuda_graph`, where the model lies on a GPU."""
        self.model, self.copies = model, copies
        tensors = [*model.parameters(), *model.buffers()]
        self._device = tensors[0].device if tensors else torch.device("cpu")
        if record is None and self._device.type == "cuda":
            pool = torch.cuda.graph_pool_handle()
            record = lambda call: cuda_graph(call, pool)  # noqa: E731
        self._record = record
        self._recorded: dict[Hashable, tuple[list[Any], Recorded]] = {}

    def __len__(self) -> int:
        """How many recordings there are."""
        return len(self._recorded)

    def forget(self) -> None:
        """Drop all recordings and their memory."""
        self._recorded.clear()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The model's result."""
        with torch.no_grad():
            if self._record is None:
                return self.model(*args, **kwargs)
            leaves, spec = tree_flatten((args, kwargs))
            key = spec, *map(_key, leaves)
            if key not in self._recorded:
                self._recorded[key] = self._first(leaves, spec)
            own, (replay, result) = self._recorded[key]
            for to, leaf in zip(own, leaves, strict=True):
                if isinstance(to, Tensor):
                    to.copy_(leaf)
            replay()
            return tree_map(_copied, result) if self.copies else result

    def _first(self, leaves: list[Any], spec: TreeSpec) -> tuple[list[Any], Recorded]:
        """A recording's own inputs, and the recording."""
        if any(module.training for module in self.model.modules()):
            raise GraphError("the model is in training mode, which draws anew: call model.eval()")
        for place, leaf in enumerate(leaves):
            if isinstance(leaf, Tensor) and leaf.device != self._device:
                raise GraphError(
                    f"tensor {place} of the arguments is on {leaf.device} and the model on "
                    f"{self._device}: move it there"
                )
        own = [leaf.clone() if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        args, kwargs = tree_unflatten(own, spec)
        recorded = self._record(lambda: self.model(*args, **kwargs))
        for leaf in tree_leaves(recorded.result):
            if not isinstance(leaf, Tensor | int | float | str | None):
                raise GraphError(
                    f"the model gives a {type(leaf).__name__}, whose tensors are not known; "
                    "allowed are tensors in tuples, lists, dicts and what torch's pytree knows"
                )
        return own, recorded


def cuda_graph(call: Call, pool: Any = None) -> Recorded:
    """The call as a CUDA graph, after its warm-up; GraphError says why it cannot be one."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(WARM_UPS):
            call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph, pool=pool):
            result = call()
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        raise GraphError(
            f"the model runs, but not as a CUDA graph: {reason}. Its forward must not wait for the "
            "GPU (.item(), .cpu(), branches on values) nor copy from memory that is not pinned"
        ) from error
    return Recorded(graph.replay, result)


def _key(leaf: Any) -> Hashable:
    if isinstance(leaf, Tensor):
        return leaf.shape, leaf.stride(), leaf.dtype, leaf.device
    return leaf


def _copied(leaf: Any) -> Any:
    return leaf.clone() if isinstance(leaf, Tensor) else leaf
