"""Optimizers from a spec: which update rule, and which weights decay."""

from typing import Any

import torch
from torch import nn, optim

from workbench.sections import Optimizer

# how an update is computed, not which: what a saved state has of it is left out
MANNER = ("lr", "fused", "capturable")


def build(model: nn.Module, spec: Optimizer, for_graph: bool = False) -> optim.Optimizer:
    """An optimizer of the trainable parameters; its rate is set at every step by the loop.

    `for_graph`: its steps can be recorded. The rate is a tensor, and the fused kernels leave out
    the step of an overflow (fp16) by themselves, where others ask the device.
    """
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    decay = spec.weight_decay
    if spec.decay_norms and spec.bias_lr == 1.0:
        groups = [{"params": trainable, "weight_decay": decay}]
    else:  # norms and biases have one dimension
        groups = [
            {"params": [p for p in trainable if p.ndim > 1], "weight_decay": decay},
            {
                "params": [p for p in trainable if p.ndim <= 1],
                "weight_decay": decay if spec.decay_norms else 0.0,
                "lr_factor": spec.bias_lr,
            },
        ]
    how = {"lr": spec.lr, "fused": for_graph or None}
    if spec.name == "sgd":
        built = torch.optim.SGD(groups, momentum=spec.momentum, nesterov=spec.nesterov, **how)
    else:
        kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[spec.name]
        built = kind(groups, betas=spec.betas, eps=spec.eps, capturable=for_graph, **how)
    if for_graph:
        for group in built.param_groups:
            group["lr"] = torch.tensor(spec.lr)  # of its own, since groups have factors
        _begin_momentum(built)
    return built


def _begin_momentum(optimizer: optim.Optimizer) -> None:
    """Give a fused SGD the momentum that it lacks: zero, with which a first step is the same.

    It allocates it in its first step and, if that one overflows and is left out, writes nothing.
    """
    for group in optimizer.param_groups:
        if group["fused"] and group.get("momentum"):
            for weight in group["params"]:
                optimizer.state[weight].setdefault("momentum_buffer", torch.zeros_like(weight))


def restore(optimizer: optim.Optimizer, state: dict[str, Any]) -> None:
    """Load a state, whichever way of running saved it; the optimizer keeps its own."""
    saved = state["param_groups"]
    for old, group in zip(saved, optimizer.param_groups, strict=True):
        old |= {key: group[key] for key in MANNER if key in group}
    optimizer.load_state_dict(state)
    _begin_momentum(optimizer)


def set_rate(optimizer: optim.Optimizer, rate: float) -> None:
    """Give every group the rate, times the group's own factor."""
    for group in optimizer.param_groups:
        own = rate * group.get("lr_factor", 1.0)
        if isinstance(group["lr"], torch.Tensor):
            group["lr"].fill_(own)  # in place: a graph reads it there
        else:
            group["lr"] = own
