"""The benchmark of whole networks: `workbench bench network`, dense opponents beside 2:4."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
import transformers
from packaging.version import Version
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

import sparse24
from sparse24 import sweeps
from sparse24.bench import BenchError
from sparse24.nn import PackedLayer
from workbench import provenance, sparsity
from workbench.bench import compiler, meter
from workbench.bench.candidates import CANDIDATES, Example
from workbench.bench.phases import Phases
from workbench.bench.plan import Planned, plan, planned
from workbench.predict.devices import names_by_record
from workbench.predict.network import predict
from workbench.workload import Workload, workload

# modules of sparse24 that no swapped network runs
TIMELESS = ("cases", "check", "conv_cases", "convs", "explain", "gemms", "sweeps", "throughput")
NAMED = ("network", "batch", "candidate")
SETTLING, LEAST_VARIANCE = 8, 1e-2  # examples for statistics; few have none at one pixel
UNMASKED = Version("5.18")  # of transformers
METHOD = (
    f"CUDA graphs, back-to-back replays between two events, median of {meter.REPEATS} with least "
    f"and most, after {meter.WARM_SECONDS:.0f} s of the same replays, as a card lowers its clock "
    "under load; clock and power under that load; the same random input and weights for all, "
    "pruned 2:4 by magnitude; energy by the driver's counter"
)


@dataclass(frozen=True)
class Tools:
    """What a run needs of the machine; tests give their own."""

    device: torch.device
    dtype: torch.dtype
    measured: Callable[[Callable[[], Any]], dict[str, Any]]
    graphs: Callable[[Callable[..., Any]], Callable[..., Any]]
    device_name: str  # of experiments/bench/devices.yaml, for the prediction; "" for none
    tables: Path  # where the measurements that it is made from lie


def network(
    out: Path,
    only: Sequence[str],
    precisions: str,
    batches: Sequence[int],
    candidates: str,
    metric: Callable[[str, str], dict[str, Any]],
) -> None:
    """Measure the plan of experiments/bench/network.csv; BenchError without a GPU.

    `metric(network, precision)` gives the task's metric of a checkpoint, dense and swapped, or why
    there is none; it is asked once for all batches.
    """
    metric = cache(metric)
    keys = planned(only, precisions, batches, candidates)
    refuse_masks()
    sparse24.bench.require_gpu()
    device = torch.device("cuda", torch.cuda.current_device())
    torch.backends.cudnn.benchmark = True
    tools = Tools(device, torch.half, meter.measured, sparse24.Graphs, card(), out.parent)
    told = {
        "what": "whole networks, dense and 2:4, microseconds of a pass",
        "method": METHOD,
        "about": provenance.git(),
        "candidates": {name: each.about for name, each in CANDIDATES.items()},
    }

    def row(name: str, batch: int, candidate: str) -> dict[str, Any]:
        tuned = next(p.autotune for p in plan() if (p.network, p.batch) == (name, batch))
        found = measured_row(Planned(name, batch, tuned), candidate, tools)
        if CANDIDATES[candidate].sparse:
            found["metric"] = metric(name, CANDIDATES[candidate].precision)
        return found

    code = {"code": sha256_of_code()}
    found = sweeps.resumed(keys, NAMED, row, out, told, code)
    print(f"{out}: {len(found['rows'])} rows")


def refuse_masks(installed: str = transformers.__version__) -> None:
    """BenchError for a transformers that gives attention a mask where nothing is padded.

    Until 5.18 it did while a graph is recorded or compiled, and torch's fast kernels take none.
    """
    if Version(installed) < UNMASKED:
        raise BenchError(
            f"transformers {installed} gives attention a mask in a CUDA graph though nothing is "
            f"padded, which doubles BERT's time; install {UNMASKED} or later"
        )


def measured_row(which: Planned, candidate: str, tools: Tools) -> dict[str, Any]:
    """One candidate of a network at a batch: what was measured, or the reason why nothing was."""
    chosen = CANDIDATES[candidate]
    told: dict[str, Any] = {
        "network": which.network,
        "batch": which.batch,
        "candidate": candidate,
        "precision": chosen.precision,
        "sparse": chosen.sparse,
        "autotune": which.autotune,
        "weights": "random, pruned 2:4 by magnitude",
    }
    clock = Phases(f"{which.network} {which.batch} {candidate}")
    try:
        with clock.phase("drawn and pruned"):
            work, example = pruned(which.network, which.batch, tools)
        told |= {"size": work.size, "unit": work.unit, "left_out": work.left_out}
        with torch.no_grad():
            with clock.phase("made"):
                exact = _output(work.module(*example))
                made = chosen.make(work.module, example, which.autotune)
            told["packed"] = sum(isinstance(each, PackedLayer) for each in made.modules())
            call = tools.graphs(made)
            with clock.phase("first calls"):  # a compiler compiles here; then a graph is recorded
                told["error"] = difference(_output(call(*example)), exact)
            if compiler.is_compiled(made):
                told["compiler"] = compiler.did()
            del work, exact  # or they would count as memory of the candidate
            with clock.phase("timed"):
                found = tools.measured(lambda: call(*example))
    except RuntimeError as error:
        # about the candidate: out of memory, a compiler's refusal, a product that a library lacks
        if isinstance(error, BenchError):  # about the machine
            raise
        found = {"reason": " ".join(str(error).split())[:300] or type(error).__name__}
        _refuse_lost(tools.device, candidate)
    if chosen.sparse and tools.device_name:
        told["predicted"] = _predicted(which, chosen.precision, tools)
    return told | {"seconds": clock.seconds, "found": {candidate: found}}


def pruned(name: str, batch: int, tools: Tools) -> tuple[Workload, Example]:
    """The pass of a network whose random weights are 2:4, and a batch of random input for it."""
    torch.manual_seed(0)
    work = workload(name, tools.device)
    model = work.module.requires_grad_(True)  # what a recipe freezes is pruned too
    sparsity.prune(model)
    model.requires_grad_(False)
    settle(model, work.arguments(SETTLING, tools.device))
    model.to(tools.dtype, memory_format=torch.channels_last)
    given = work.arguments(batch, tools.device)
    return work, tuple(_prepared(tensor, tools.dtype) for tensor in given)


@torch.no_grad()
def settle(model: nn.Module, example: Example) -> None:
    """Give batch norms the statistics of what they see, or random weights overflow FP16."""

    def note(norm: nn.Module, given: tuple[Tensor, ...]) -> None:
        dims = [dim for dim in range(given[0].dim()) if dim != 1]
        variance, mean = torch.var_mean(given[0], dims, correction=0)
        norm.running_mean.copy_(mean)
        norm.running_var.copy_(variance.clamp(min=LEAST_VARIANCE))

    norms = [m for m in model.modules() if getattr(m, "running_var", None) is not None]
    handles = [norm.register_forward_pre_hook(note) for norm in norms]
    model(*example)
    for handle in handles:
        handle.remove()


def difference(found: list[Tensor], exact: list[Tensor]) -> float:
    """The root of the mean squared difference, over that of the exact values."""
    pairs = [(a.detach().double(), b.detach().double()) for a, b in zip(found, exact, strict=True)]
    off = sum(float((a - b).square().sum()) for a, b in pairs)
    whole = sum(float(b.square().sum()) for _, b in pairs)
    return (off / whole) ** 0.5 if whole else float(off > 0)


def card() -> str:
    """The name in devices.yaml of the card that is there, "" for one that it does not have."""
    name = torch.cuda.get_device_name()
    return next((key for key, begins in names_by_record().items() if name.startswith(begins)), "")


def sha256_of_code() -> str:
    """A digest of the Python on which a time depends: what swaps, the opponents, the meter."""
    ours = sorted(Path(sparse24.__file__).parent.glob("*.py"))
    names = "candidates", "compiler", "eight_bits", "meter"
    here = [Path(__file__).with_name(f"{name}.py") for name in names]
    digests = [provenance.sha256(path) for path in [*ours, *here] if path.stem not in TIMELESS]
    return hashlib.sha256("".join(digests).encode()).hexdigest()[:16]


def _prepared(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    if not tensor.is_floating_point():
        return tensor
    tensor = tensor.to(dtype)
    return tensor.to(memory_format=torch.channels_last) if tensor.dim() == 4 else tensor


def _output(found: Any) -> list[Tensor]:
    return [
        t.clone() for t in tree_leaves(found) if isinstance(t, Tensor) and t.is_floating_point()
    ]


def _refuse_lost(device: torch.device, candidate: str) -> None:
    if device.type == "cuda":
        try:
            torch.cuda.synchronize()
        except RuntimeError as lost:
            raise BenchError(f"the GPU was lost by {candidate}: {lost}; start again") from lost
        torch.cuda.empty_cache()


@cache
def _seen(name: str) -> Workload:
    return workload(name)


def _predicted(which: Planned, precision: str, tools: Tools) -> dict[str, float]:
    found = predict(_seen(which.network), which.batch, tools.device_name, precision, tools.tables)
    return {
        "dense_ms": found.dense.total,
        "sparse_ms": found.sparse.total,
        "speedup": found.speedup,
    }
