"""Which backend computes a product or a convolution: measured per device, kept on disk."""

import json
import os
import sys
import tempfile
from collections.abc import Iterable
from contextlib import nullcontext
from functools import cache
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor

from . import bench, build
from .bench import Timer, Timing
from .candidates import OURS, Choice, Rung, copy_for
from .conv_trials import ConvProblem
from .conv_weight import SparseConvWeight
from .convolution import Walk, is_product
from .geometry import Geometry
from .linear import default_out
from .scales import Scales
from .seam import ACTIVATIONS, TYPES
from .trials import AnyProblem, Problem, Trial, trials
from .weight import PackedWeight, SparseWeight

TOKENS = (1, 16, 64, 256, 1024, 4096, 16384)  # measured where no others are named
MARGIN = 0.02  # by which another backend must be faster, as it costs a copy
VERSION = 1  # of the file


class Measured:
    """The times of a device: problem -> its candidates, fastest first, in a file of JSON."""

    def __init__(self, path: Path) -> None:
        """Reads the file if there is one of this version."""
        self.path = path
        self.found: dict[str, list[Trial]] = {}
        if path.exists():
            told = json.loads(path.read_text())
            if told["version"] == VERSION:
                self.found = {key: [_trial(t) for t in rows] for key, rows in told["found"].items()}

    def add(self, problem: AnyProblem, found: list[Trial]) -> None:
        """Keep the trials, and write the file whole and by rename."""
        merged = Measured(self.path).found | self.found  # of another process meanwhile
        self.found = merged | {problem.key(): found}
        told = {key: [_told(t) for t in rows] for key, rows in sorted(self.found.items())}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=self.path.parent, prefix=self.path.name)
        with os.fdopen(handle, "w") as file:
            json.dump({"version": VERSION, "found": told}, file, indent=1)
        Path(name).replace(self.path)

    def get(self, problem: AnyProblem) -> list[Trial] | None:
        """The trials of a problem, None if it was not measured."""
        return self.found.get(problem.key())


@cache
def measured(device: torch.device) -> Measured:
    """The times kept for a device, its driver and the libraries on it."""
    told = bench.facts()
    names = [str(told[name]) for name in ("device", "driver", "torch", "cusparselt")]
    version = f"kernels {build.digest(build.compiler())}"
    return Measured(build.cache_root() / f"{' '.join([*names, version])}.json".replace("/", "-"))


def tune(
    w: SparseWeight,
    tokens: Iterable[int] = TOKENS,
    bias: bool = False,
    activation: str | None = None,
    residual: bool = False,
    out_dtype: torch.dtype | None = None,
    scales: Scales | None = None,
    dense: Tensor | None = None,
    timer: Timer = bench.graph_time,
    store: Measured | None = None,
) -> SparseWeight:
    """The same weight, for which `linear` then runs what is fastest at each number of tokens.

    Measures what the device's file does not hold yet (seconds a size), for calls with the
    epilogue that the other arguments describe, as `linear` takes them; without gradients. Between
    two sizes the nearer in ratio decides. A copy in another form is kept only where it wins by
    more than MARGIN; `dense` saves unpacking it.
    """
    require(timer)
    sizes = sorted(set(tokens))
    if not sizes or sizes[0] < 1:
        raise ValueError(f"tokens are {sizes}; give the numbers of rows to measure at, as [1, 256]")
    out = TYPES[out_dtype or default_out(w.dtype, scales)]
    epilogue = ACTIVATIONS[activation], bias, residual, scales is not None
    shape = w.out_features, w.in_features, w.element
    problems = {count: Problem(count, *shape, out, *epilogue, w.sparse) for count in sizes}
    apply(w, (out, *epilogue), _found(problems, w.device, timer, store), dense)
    return w


def tune_conv2d(
    w: SparseConvWeight,
    images: Iterable[tuple[int, int, int]],
    stride: Walk = 1,
    padding: Walk | str = 0,
    dilation: Walk = 1,
    bias: bool = False,
    activation: str | None = None,
    residual: bool = False,
    out_dtype: torch.dtype | None = None,
    scales: Scales | None = None,
    dense: Tensor | None = None,
    timer: Timer = bench.graph_time,
    store: Measured | None = None,
) -> SparseConvWeight:
    """As `tune`, for `conv2d` of images of these sizes: (batch, height, width).

    Other batches of the same height and width take what the nearer in ratio takes; images of other
    sizes are as without measurements.
    """
    geometry = Geometry.of(w.kernel, stride, padding, dilation)
    sizes = sorted(set(images))
    if not sizes or any(min(size) < 1 for size in sizes):
        raise ValueError(f"images are {sizes}; give (batch, height, width) to measure at")
    if is_product(w, geometry):
        tokens = {batch * height * width for batch, height, width in sizes}
        flat = None if dense is None else dense.flatten(1)
        epilogue = bias, activation, residual, out_dtype, scales
        tune(w.matrix, tokens, *epilogue, flat, timer, store)
        return w
    require(timer)
    out = TYPES[out_dtype or default_out(w.dtype, scales)]
    epilogue = ACTIVATIONS[activation], bias, residual, scales is not None
    shape = w.in_channels, w.out_channels, w.groups, geometry, w.element
    for area in sorted({size[1:] for size in sizes}):
        problems = {
            batch: ConvProblem(batch, *area, *shape, out, *epilogue, w.sparse)
            for batch, *rest in sizes
            if tuple(rest) == area
        }
        kind = (out, *epilogue), geometry, area
        apply(w, kind, _found(problems, w.device, timer, store), dense)
    return w


def require(timer: Timer) -> None:
    """Raise BenchError where the timer needs a GPU and there is none."""
    if timer is bench.graph_time:
        bench.require_gpu()


def _found(
    problems: dict[int, AnyProblem], device: torch.device, timer: Timer, store: Measured | None
) -> list[tuple[int, tuple[Trial, ...]]]:
    """For each count its timed trials: of the file, or measured and written to it."""
    result = []
    with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
        store = store or measured(device)
        for count, problem in problems.items():
            found = store.get(problem)
            if found is None:
                found = trials(problem, device, timer, prompt=True)
                store.add(problem, found)
            result.append((count, tuple(trial for trial in found if trial.timing)))
    return result


def apply(
    w: PackedWeight, key: tuple, measurements: list[tuple[int, tuple]], dense: Tensor | None
) -> None:
    """Let the weight run what the measurements, in order of counts, say of calls of one kind."""
    counts = [count for count, _ in measurements]
    limits = [int((a * b) ** 0.5) for a, b in pairwise(counts)] + [sys.maxsize]
    w.tuned[key] = tuple(
        Rung(most, winner(found), count, found)
        for most, (count, found) in zip(limits, measurements, strict=True)
    )
    wanted = {rung.choice.backend for rungs in w.tuned.values() for rung in rungs} - {"sparse24"}
    missing = wanted - set(w.copies)
    if missing:
        dense = w.unpack() if dense is None else dense.detach()
        w.copies |= {backend: copy_for(backend, dense) for backend in sorted(missing)}


def winner(found: tuple[Trial, ...]) -> Choice:
    """The fastest; ours unless another is faster by more than MARGIN."""
    ours = [t for t in found if t.choice.backend == "sparse24"]
    fastest = min(found, key=lambda t: t.timing.median_us, default=None)
    if fastest is None:
        return OURS
    if ours and ours[0].timing.median_us <= fastest.timing.median_us * (1 + MARGIN):
        return ours[0].choice
    return fastest.choice


def _told(trial: Trial) -> list:
    return [*trial.choice, trial.timing, trial.reason]


def _trial(told: list) -> Trial:
    backend, number, timing, reason = told
    return Trial(Choice(backend, number), timing and Timing(*timing), reason)
