"""Optimizers from a spec: which update rule, and which weights decay."""

import torch
from torch import nn, optim

from workbench.sections import Optimizer


def build(model: nn.Module, spec: Optimizer) -> optim.Optimizer:
    """An optimizer of the trainable parameters; its rate is set at every step by the loop."""
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
    if spec.name == "sgd":
        return torch.optim.SGD(groups, lr=spec.lr, momentum=spec.momentum, nesterov=spec.nesterov)
    kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[spec.name]
    return kind(groups, lr=spec.lr, betas=spec.betas, eps=spec.eps)


def set_rate(optimizer: optim.Optimizer, rate: float) -> None:
    """Give every group the rate, times the group's own factor."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group.get("lr_factor", 1.0)
