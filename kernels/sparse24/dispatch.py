"""Which backend computes a product: measured per device, kept on disk, explained by `why`."""

import inspect
import json
import os
import sys
import tempfile
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from . import bench, build
from .bench import Timer, Timing
from .candidates import OURS, Choice, Rung, copy_for, signature
from .linear import chosen, default_out, linear, prepared
from .scales import Scales
from .seam import ACTIVATIONS, TYPES, Plan
from .trials import Problem, Trial, trials
from .weight import SparseWeight

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

    def add(self, problem: Problem, found: list[Trial]) -> None:
        """Keep the trials, and write the file whole and by rename."""
        merged = Measured(self.path).found | self.found  # of another process meanwhile
        self.found = merged | {problem.key(): found}
        told = {key: [_told(t) for t in rows] for key, rows in sorted(self.found.items())}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=self.path.parent, prefix=self.path.name)
        with os.fdopen(handle, "w") as file:
            json.dump({"version": VERSION, "found": told}, file, indent=1)
        Path(name).replace(self.path)

    def get(self, problem: Problem) -> list[Trial] | None:
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
    if timer is bench.graph_time:
        bench.require_gpu()
    sizes = sorted(set(tokens))
    if not sizes or sizes[0] < 1:
        raise ValueError(f"tokens are {sizes}; give the numbers of rows to measure at, as [1, 256]")
    out = out_dtype or default_out(w.dtype, scales)
    epilogue = ACTIVATIONS[activation], bias, residual, scales is not None
    with torch.cuda.device(w.device) if w.device_type == "cuda" else nullcontext():
        store = store or measured(w.device)
        measurements = [
            (count, _found(store, w, count, TYPES[out], epilogue, timer)) for count in sizes
        ]
    apply(w, (TYPES[out], *epilogue), measurements, dense)
    return w


def _found(
    store: Measured, w: SparseWeight, tokens: int, out_type: int, epilogue: tuple, timer: Timer
) -> tuple[Trial, ...]:
    """The timed trials of the file, or measured and written to it."""
    problem = Problem(
        tokens, w.out_features, w.in_features, w.element, out_type, *epilogue, w.sparse
    )
    found = store.get(problem)
    if found is None:
        found = trials(problem, w.device, timer)
        store.add(problem, found)
    return tuple(trial for trial in found if trial.timing)


def apply(
    w: SparseWeight, key: tuple, measurements: list[tuple[int, tuple]], dense: Tensor | None
) -> None:
    """Let the weight run what the measurements, in order of tokens, say of calls of one kind."""
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


def backend(x: Tensor | Sequence[int], w: SparseWeight, *args: Any, **kwargs: Any) -> str:
    """What computes `linear` of these arguments: sm90, sm80, cusparselt, dense or reference."""
    rung, _ = _rung(x, w, *args, **kwargs)
    name = rung.choice.backend if rung else "sparse24"
    return w.backend if name == "sparse24" else name


def why(x: Tensor | Sequence[int], w: SparseWeight, *args: Any, **kwargs: Any) -> str:
    """The backend that `linear` takes for these arguments (x: a tensor or a shape), with times."""
    rung, tokens = _rung(x, w, *args, **kwargs)
    size = f"{w.out_features} x {tokens} x {w.in_features} {str(w.dtype).removeprefix('torch.')}"
    if w.backend == "reference" and rung is None:
        return (
            f"{size}: reference (plain torch); the kernels are for compute capability 8.x and 9.0"
        )
    if rung is None and w.backend != "sm90":
        return f"{size}: {w.backend}; not measured: sparse24.tune(w, tokens=[{tokens}]) does"
    if rung is None:
        device = torch.cuda.get_device_properties(w.device)
        shape = tokens, w.in_features, w.out_features, w.element, w.sparse
        plan = torch.ops.sparse24.plan(*shape, device.multi_processor_count)
        seconds = torch.ops.sparse24.predict(plan, *shape, device.multi_processor_count)
        return (
            f"{size}: {w.backend}, {Plan.of(plan)} of the cost model, which predicts "
            f"{seconds * 1e6:.1f} us; not measured: sparse24.tune(w, tokens=[{tokens}]) does"
        )
    lines = [f"{size}: {_named(rung.choice, w)}, as measured at {rung.tokens} tokens"]
    for trial in rung.trials:
        time = trial.timing
        lines.append(
            f"  {_named(trial.choice, w):<60}{time.median_us:>10.2f} us"
            f"  [{time.low_us:.2f}, {time.high_us:.2f}]"
        )
    return "\n".join(lines)


def _rung(
    x: Tensor | Sequence[int], w: SparseWeight, *args: Any, **kwargs: Any
) -> tuple[Rung | None, int]:
    if not isinstance(x, Tensor):
        x = torch.empty(*x, dtype=w.dtype, device=w.device)
    given = inspect.signature(linear).bind(x, w, *args, **kwargs)
    given.apply_defaults()
    flat, finish = prepared(**given.arguments)
    return chosen(w, signature(finish), flat.shape[0]), flat.shape[0]


def _named(choice: Choice, w: SparseWeight) -> str:
    if choice.backend == "cusparselt":
        return f"cusparselt, algorithm {choice.number}"
    if choice.backend == "dense":
        return "dense"
    plan = "the cost model's plan" if choice == OURS else str(Plan.of(choice.number))
    return f"{w.backend}, {plan}"


def _told(trial: Trial) -> list:
    return [*trial.choice, trial.timing, trial.reason]


def _trial(told: list) -> Trial:
    backend, number, timing, reason = told
    return Trial(Choice(backend, number), timing and Timing(*timing), reason)
