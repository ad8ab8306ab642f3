"""torch.compile as an opponent: how it is set, and what it then did."""

from typing import Any

import torch
from torch import nn
from torch._dynamo.utils import compilation_time_metrics, counters
from transformers import BertModel

LEAST_SECONDS = 1.0  # of a part of a compilation that is told
ABOUT = (
    "torch.compile, weights frozen; where the plan says so with max_autotune: for each size of "
    "product the fastest of cuBLAS and Triton's templates, epilogues fused where that was "
    "measured to be faster, several tilings of what is element-wise; "
)
WITHOUT = ABOUT + "no coordinate descent, which searches tilings of norms and element-wise kernels"
DESCENT = ABOUT + "coordinate descent from there on: all of torch's mode max-autotune-no-cudagraphs"


def compiled(model: nn.Module, autotune: bool, descent: bool = False) -> nn.Module:
    """The model, through Inductor from its first call on, with its weights frozen.

    `descent` adds the local search that torch's mode max-autotune has too: one kernel after the
    other is compiled and timed tens of times. It leaves products as they are.
    """
    import torch._inductor.config as inductor

    inductor.freezing = True
    inductor.autotune_num_choices_displayed = 0  # or each size of product prints a page,
    inductor.max_autotune_report_choices_stats = False  # and a line
    torch._dynamo.reset()  # or the limit of recompilations of the last network counts here too
    counters.clear()
    compilation_time_metrics.clear()
    options = {"max_autotune": autotune, "coordinate_descent_tuning": descent}
    for part in parts(model):
        part.compile(options=options, dynamic=False)
    return model


def parts(model: nn.Module) -> list[nn.Module]:
    """What is compiled: all of a model; of BERT its embeddings, encoder and head, each for itself.

    Between them transformers decides on attention's mask. Compiled by torch 2.11 it makes one
    though nothing is padded, and attention becomes plain products of float32, not a flash kernel.
    """
    masked = [module for module in model.modules() if isinstance(module, BertModel)]
    if not masked:
        return [model]
    return [part for owner in (model, *masked) for part in owner.children() if part not in masked]


def is_compiled(model: nn.Module) -> bool:
    """Whether `compiled` made it."""
    return any(module._compiled_call_impl is not None for module in model.modules())


def did() -> dict[str, Any]:
    """What was compiled since: products by size, benchmarks that were run, seconds by part.

    Of equal products one is benchmarked; none of which a carried cache holds the times. The parts
    of the seconds lie in one another, so they do not add up.
    """
    seconds = {name: round(sum(each), 1) for name, each in compilation_time_metrics.items()}
    inductor = counters["inductor"]
    return {
        "products": dict(counters["aten_mm_info"]),
        "benchmarked": inductor["select_algorithm_autotune"],
        "descent_steps": inductor["coordesc_tuning_bench"],
        "graphs_from_cache": inductor["fxgraph_cache_hit"],
        "seconds": {
            name: each
            for name, each in sorted(seconds.items(), key=lambda pair: -pair[1])
            if each >= LEAST_SECONDS
        },
    }
