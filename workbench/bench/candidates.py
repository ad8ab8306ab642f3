"""Who computes a whole network: the dense opponents, as strong as torch makes them, and ours."""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

import sparse24
from sparse24.dense_mode import in_dense_mode
from workbench import quant
from workbench.bench import compiler
from workbench.bench.eight_bits import FP8, in_eight_bits

Example = tuple[Tensor, ...]
Make = Callable[[nn.Module, Example, bool], nn.Module]


class NotMade(RuntimeError):
    """A candidate that a network does not have, with the reason."""


@dataclass(frozen=True)
class Candidate:
    """One way to run a network.

    `make(model, example, autotune)` gives what is called; `about` says what it is, for the file.
    One that is `lengthy` is made where the plan has opponents tuned at length alone.
    """

    precision: str
    sparse: bool
    about: str
    make: Make
    lengthy: bool = False


@torch.no_grad()
def folded(model: nn.Module, example: Example) -> nn.Module:
    """A copy of a model in eval mode whose batch norms are part of the convolutions before them."""
    model = deepcopy(model)
    with quant.Following(model) as followed:
        model(*example)
    quant.fold(model, followed.pairs())
    return model


def _eager(model: nn.Module, example: Example, _: bool) -> nn.Module:
    return folded(model, example)


def _compiled(descent: bool) -> Make:
    def make(model: nn.Module, example: Example, autotune: bool) -> nn.Module:
        return compiler.compiled(folded(model, example), autotune, descent)

    return make


def _eight(dtype: torch.dtype) -> Make:
    def make(model: nn.Module, example: Example, autotune: bool) -> nn.Module:
        model = folded(model, example)
        if not in_eight_bits(model, example, dtype):
            raise NotMade("torch has 8-bit products of linear layers alone, and none is taken here")
        return compiler.compiled(model, autotune)

    return make


def _ours(precision: str, sparse: bool = True, compiles: bool = False) -> Make:
    def make(model: nn.Module, example: Example, _: bool) -> nn.Module:
        model = deepcopy(model)
        sparse24.swap(model, precision=precision, example=example)
        if not sparse and not in_dense_mode(model):
            raise NotMade("swapping packs no layer of it")
        return compiler.compiled(model, autotune=False) if compiles else model

    return make


_LIBRARY = "SDPA without mask, batch norms folded, channels_last"
_LEFT = "torch.compile of what swapping leaves, without tuning"
_DENSE_MODE = "each layer by our kernel in dense mode or the library, epilogues fused as in 2:4"
# of each precision in the order of what a run that is cut short should have
CANDIDATES = {
    "sparse24 fp16": Candidate("fp16", True, "sparse24.swap, 2:4", _ours("fp16")),
    "sparse24 compiled fp16": Candidate(
        "fp16", True, f"the same, and {_LEFT}", _ours("fp16", compiles=True)
    ),
    "compiled fp16": Candidate(
        "fp16", False, f"{compiler.WITHOUT}; {_LIBRARY}", _compiled(descent=False)
    ),
    "eager fp16": Candidate("fp16", False, f"torch as it is, {_LIBRARY}", _eager),
    "sparse24 dense fp16": Candidate("fp16", False, _DENSE_MODE, _ours("fp16", sparse=False)),
    "compiled descent fp16": Candidate(
        "fp16", False, f"{compiler.DESCENT}; {_LIBRARY}", _compiled(descent=True), lengthy=True
    ),
    "sparse24 int8": Candidate("int8", True, "sparse24.swap, 2:4, activations INT8", _ours("int8")),
    "sparse24 compiled int8": Candidate(
        "int8", True, f"the same, and {_LEFT}", _ours("int8", compiles=True)
    ),
    "compiled int8": Candidate(
        "int8", False, f"linear layers by torch._int_mm, {compiler.WITHOUT}", _eight(torch.int8)
    ),
    "compiled fp8": Candidate(
        "int8", False, f"linear layers by torch._scaled_mm, {compiler.WITHOUT}", _eight(FP8)
    ),
    "sparse24 dense int8": Candidate("int8", False, _DENSE_MODE, _ours("int8", sparse=False)),
}
