"""Every candidate of a product, timed on random operands."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from functools import partial
from itertools import count
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from . import algorithms, bench, draw
from .bench import BenchError, Call, Timer, Timing
from .candidates import Choice, Finish, Unsupported, copy_for, refuse_cusparselt, run
from .seam import ACTIVATIONS, COST_MODEL, DTYPES, Plan
from .weight import PackedWeight, SparseWeight, pack

BACKENDS = ("sparse24", "cusparselt", "dense")
FINALISTS = 3
MOST_HOST_MS = 5.0  # of a call that dispatch may choose
NO_TILE = "there is no tile of this number"  # csrc/sm90_launch.cuh's words
CLUSTERS = ((1, 1), (2, 1), (1, 2))
RASTERS = (4, 8, 16)


class Problem(NamedTuple):
    """What the time of a product depends on."""

    tokens: int
    out_features: int
    in_features: int
    element: int
    out_type: int
    activation: int = 0
    bias: bool = False
    residual: bool = False
    scale: bool = False
    sparse: bool = True

    def key(self) -> str:
        """The problem as one word, for a file."""
        return f"{self.out_features}x{self.tokens}x{self.in_features} {kind(self)}"

    @property
    def result(self) -> tuple[int, int]:
        """Rows and columns of the result."""
        return self.tokens, self.out_features

    @property
    def backends(self) -> tuple[str, ...]:
        """Who can compute it."""
        return BACKENDS

    def drawn(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """A random weight and x."""
        dtype, shape = DTYPES[self.element], (self.out_features, self.in_features)
        draws = draw.weight_2to4 if self.sparse else draw.operand
        weight = draws(*shape, dtype, 0, device)
        return weight, draw.operand(self.tokens, self.in_features, dtype, 2, device)

    def packed(self, weight: Tensor) -> SparseWeight:
        """The weight for our kernels."""
        return pack(weight, self.sparse)

    def run(self, choice: Choice, *operands: Any) -> Tensor:
        """The result by one candidate."""
        return run(choice, *operands)


class AnyProblem(Protocol):
    """What `trials` asks of a problem: Problem here, ConvProblem of conv_trials.py."""

    element: int
    out_type: int
    activation: int
    bias: bool
    residual: bool
    scale: bool
    sparse: bool
    result: tuple[int, int]
    backends: tuple[str, ...]

    def key(self) -> str:
        """The problem as one word, for a file."""

    def drawn(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """A random weight and x."""

    def packed(self, weight: Tensor) -> PackedWeight:
        """The weight for our kernels."""

    def run(self, choice: Choice, *operands: Any) -> Tensor:
        """The result by one candidate, of x, packed weight, copy and epilogue."""


def kind(problem: AnyProblem) -> str:
    """Types, pattern and epilogue of a problem in words, as `float16:float16 2:4 bias+relu`."""
    types = ":".join(
        str(DTYPES[number]).removeprefix("torch.") for number in (problem.element, problem.out_type)
    )
    names = {number: name for name, number in ACTIVATIONS.items()}
    extras = [name for name in ("bias", "residual", "scale") if getattr(problem, name)]
    extras += [names[problem.activation]] if problem.activation else []
    return " ".join([types, "2:4" if problem.sparse else "dense", "+".join(extras) or "bare"])


class Trial(NamedTuple):
    """A candidate and its time, or why it has none; with a time, what its search left out."""

    choice: Choice
    timing: Timing | None
    reason: str = ""


class Operands:
    """Sets of random operands of a problem, enough of them to rotate past the L2."""

    def __init__(self, problem: AnyProblem, device: torch.device, sets: int | None = None) -> None:
        """Draws the first set; the others are its copies, as a time depends little on values."""
        self.problem = problem
        out, (tokens, rows) = DTYPES[problem.out_type], problem.result
        self.weight, x = problem.drawn(device)
        bias = torch.randn(rows, device=device).to(out if out.itemsize == 2 else torch.float32)
        residual = torch.randn(tokens, rows, device=device).to(out) if problem.residual else None
        size = x.nbytes + self.weight.nbytes + tokens * rows * out.itemsize
        self.sets = sets or bench.sets_to_rotate(size)
        self.inputs = [(x.clone(), _clone(residual)) for _ in range(self.sets)]
        self.bias = bias if problem.bias else None
        self.scale = torch.full((rows,), 1e-4, device=device) if problem.scale else None
        self.packed = [problem.packed(self.weight)]
        self.packed += [self.packed[0].clone() for _ in range(self.sets - 1)]
        self._copies: dict[str, list[Tensor | None]] = {}

    def calls(self, choice: Choice) -> list[Call]:
        """One call for each set, by one candidate."""
        if choice.backend not in self._copies:
            first = copy_for(choice.backend, self.weight)
            self._copies[choice.backend] = [_clone(first) for _ in range(self.sets)]
        problem = self.problem
        numbers = problem.out_type, problem.activation, 1.0, 1.0
        copies = self._copies[choice.backend]
        return [
            partial(problem.run, choice, x, w, copy, self._finish(residual, numbers))
            for (x, residual), w, copy in zip(self.inputs, self.packed, copies, strict=True)
        ]

    def _finish(self, residual: Tensor | None, numbers: tuple) -> Finish:
        return self.bias, residual, self.scale, *numbers


class Asked(NamedTuple):
    """A problem, who is asked for it (all that can, if None), and all of our plans or one.

    `prompt` leaves cuSPARSELt out where a call of it keeps the CPU longer than MOST_HOST_MS: torch
    makes a plan in each, so that an eager layer would wait however fast the GPU is.
    """

    problem: AnyProblem
    backends: tuple[str, ...] | None = None
    plans: bool = True
    prompt: bool = False


def trials(
    problem: AnyProblem,
    device: torch.device,
    timer: Timer = bench.graph_time,
    backends: tuple[str, ...] | None = None,
    prompt: bool = False,
) -> list[Trial]:
    """The best of each backend, the fastest first; a backend that cannot says why, at the end.

    BenchError if the GPU is lost on the way.
    """
    return trials_of([Asked(problem, backends, prompt=prompt)], device, timer)[0]


def trials_of(
    asked: Sequence[Asked], device: torch.device, timer: Timer = bench.graph_time
) -> list[list[Trial]]:
    """The same of several problems.

    All candidates are timed once in short, then the FINALISTS of each backend at length, those of
    all the problems in turn.
    """
    operands, quick = {}, partial(_timed, timer=bench.glance(timer))
    entries = []  # which was asked, what a backend's candidates showed, and its finalists
    for index, (problem, backends, plans, prompt) in enumerate(asked):
        if problem not in operands:
            operands[problem] = Operands(problem, device)
        for backend in backends or problem.backends:
            tried = sorted(_tried(operands[problem], backend, quick, plans, prompt), key=_time)
            finals = [(operands[problem], t.choice) for t in tried[:FINALISTS] if t.timing]
            entries.append((index, tried, finals))
    timings = iter(_in_turn([final for *_, finals in entries for final in finals], timer))
    found: list[list[Trial]] = [[] for _ in asked]
    for index, tried, finals in entries:
        timed = [Trial(choice, next(timings)) for _, choice in finals]
        best = min(timed or tried, key=_time)
        found[index].append(best._replace(reason=best.reason or tried[0].reason))
    return [sorted(each, key=_time) for each in found]


def _in_turn(finals: Sequence[tuple[Operands, Choice]], timer: Timer) -> list[Timing]:
    with ExitStack() as watches:
        for operands, choice in finals:
            watches.enter_context(_watched(operands, choice))
        return bench.in_turn(timer)([operands.calls(choice) for operands, choice in finals])


def _tried(
    operands: Operands, backend: str, timed: Callable[..., Trial], plans: bool, prompt: bool
) -> list[Trial]:
    if backend == "cusparselt":
        return _algorithms(operands, timed, prompt)
    done = [timed(operands, Choice(backend, COST_MODEL if backend == "sparse24" else 0))]
    if done[0].timing is None or backend == "dense":
        return done
    for tile in count() if plans and operands.packed[0].backend == "sm90" else ():
        found = [
            timed(operands, Choice(backend, Plan(tile, *cluster, raster).number()))
            for cluster in CLUSTERS
            for raster in RASTERS
        ]
        if all(NO_TILE in trial.reason for trial in found):
            break
        done += found
    return done


def _algorithms(operands: Operands, timed: Callable[..., Trial], prompt: bool) -> list[Trial]:
    """cuSPARSELt by each number that is known to finish (torch 2.11's own search crashes)."""
    try:
        refuse_cusparselt(operands.weight, DTYPES[operands.problem.out_type])
    except Unsupported as error:
        return [Trial(Choice("cusparselt", 0), None, str(error))]
    if prompt and (spent := _host_ms(operands)) > MOST_HOST_MS:
        reason = f"a call keeps the CPU {spent:.0f} ms, as torch makes a plan in each"
        return [Trial(Choice("cusparselt", 0), None, reason)]
    known = _known(operands)
    done = [timed(operands, Choice("cusparselt", number)) for number in known.finishing]
    if not done:
        reason = f"no algorithm finishes: {known.left_out}"
        return [Trial(Choice("cusparselt", 0), None, reason)]
    return [trial._replace(reason=trial.reason or known.left_out) for trial in done]


def _host_ms(operands: Operands) -> float:
    """What a call by the library's own choice keeps the CPU; 0 if refused, as others may run."""
    try:
        return bench.host_us(operands.calls(Choice("cusparselt", 0))[0], count=5) / 1e3
    except (Unsupported, RuntimeError) as error:
        if isinstance(error, BenchError):
            raise
        return 0.0


def _known(operands: Operands) -> algorithms.Algorithms:
    types = operands.problem.element, operands.problem.out_type
    return algorithms.known(*(DTYPES[number] for number in types), operands.weight.get_device())


def _watched(operands: Operands, choice: Choice) -> AbstractContextManager[None]:
    """What ends the process if an algorithm of cuSPARSELt does not finish at this size."""
    if choice.backend != "cusparselt":
        return nullcontext()
    return _known(operands).watched(choice.number, f"at {operands.problem.key()}")


def _timed(operands: Operands, choice: Choice, timer: Timer) -> Trial:
    try:
        with _watched(operands, choice):
            return Trial(choice, timer(operands.calls(choice)))
    except (Unsupported, RuntimeError) as error:
        if isinstance(error, BenchError):
            raise
        reason = str(error).splitlines()[0]
    if operands.packed[0].device_type == "cuda":
        try:
            torch.cuda.synchronize()
        except RuntimeError as lost:
            raise BenchError(f"the GPU was lost by {choice}: {reason}; start again") from lost
    return Trial(choice, None, reason)


def _time(trial: Trial) -> float:
    return trial.timing.median_us if trial.timing else float("inf")


def _clone(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.clone()
