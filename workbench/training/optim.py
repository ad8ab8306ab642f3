"""Optimizers from a spec: which update rule, and which weights decay."""

import torch
from torch import nn, optim

from workbench.spec import Optimizer


def build(model: nn.Module, spec: Optimizer) -> optim.Optimizer:
    """An optimizer of the trainable parameters; its rate is set at every step by the loop."""
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if spec.decay_norms:
        groups = [{"params": trainable, "weight_decay": spec.weight_decay}]
    else:  # norms and biases have one dimension
        groups = [
            {"params": [p for p in trainable if p.ndim > 1], "weight_decay": spec.weight_decay},
            {"params": [p for p in trainable if p.ndim <= 1], "weight_decay": 0.0},
        ]
    if spec.name == "sgd":
        return torch.optim.SGD(groups, lr=spec.lr, momentum=spec.momentum, nesterov=spec.nesterov)
    kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[spec.name]
    return kind(groups, lr=spec.lr, betas=spec.betas)
