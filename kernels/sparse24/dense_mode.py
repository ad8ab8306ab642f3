"""Dense mode: the packed layers of a model compute as dense ones, for an honest comparison."""

from torch import nn

from . import bench
from .bench import Timer
from .conv_trials import ConvProblem
from .conv_weight import SparseConvWeight, pack_conv2d
from .dispatch import Measured, apply, measured
from .nn import PackedLayer
from .trials import AnyProblem, Problem, trials
from .weight import PackedWeight, SparseWeight, pack


def in_dense_mode(
    model: nn.Module, timer: Timer = bench.graph_time, store: Measured | None = None
) -> int:
    """Give each 2:4 layer of a swapped model, in place, its weight packed dense; how many.

    What was measured of the 2:4 weight is measured of the dense one, by our kernels in dense mode
    and by the library, so that each layer runs what is fastest there too.
    """
    count = 0
    for layer in model.modules():
        if isinstance(layer, PackedLayer) and layer.weight.sparse:
            dense = _dense(layer.weight, timer, store)
            layer.packed, layer.header, layer._weight = dense.packed, dense.header(), dense
            count += 1
    return count


def _dense(w: PackedWeight, timer: Timer, store: Measured | None) -> PackedWeight:
    """The weight packed dense, measured at all that it was measured at."""
    if not isinstance(w, SparseConvWeight):
        dense = pack(w.unpack(), sparse=False)
        _tune(w, dense, timer, store)
        return dense
    dense = pack_conv2d(w.unpack(), w.groups, sparse=False)
    _tune(w.matrix, dense.matrix, timer, store)
    _tune(w, dense, timer, store)
    return dense


def _tune(w: PackedWeight, dense: PackedWeight, timer: Timer, store: Measured | None) -> None:
    for kind, rungs in w.tuned.items():
        found = [(rung.tokens, _trials(dense, kind, rung.tokens, timer, store)) for rung in rungs]
        apply(dense, kind, found, None)


def _trials(
    dense: PackedWeight, kind: tuple, count: int, timer: Timer, store: Measured | None
) -> tuple:
    store = store or measured(dense.device)
    problem = _problem(dense, kind, count)
    found = store.get(problem)
    if found is None:
        found = trials(problem, dense.device, timer)
        store.add(problem, found)
    return tuple(trial for trial in found if trial.timing)


def _problem(dense: PackedWeight, kind: tuple, count: int) -> AnyProblem:
    """A dense problem of a weight, of the kind that its measurements have as key."""
    if isinstance(dense, SparseWeight):
        return Problem(
            count, dense.out_features, dense.in_features, dense.element, *kind, sparse=False
        )
    epilogue, geometry, area = kind
    shape = dense.in_channels, dense.out_channels, dense.groups, geometry, dense.element
    return ConvProblem(count, *area, *shape, *epilogue, sparse=False)
