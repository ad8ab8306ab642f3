"""A small network and its training by every optimizer of torch, for the tests of `hold`."""

import torch
from torch import nn, optim

OPTIMIZERS = {
    "sgd": lambda p: optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=1e-2),
    "nesterov": lambda p: optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True, weight_decay=1e-2),
    "adam": lambda p: optim.Adam(p, lr=0.01, weight_decay=1e-2, amsgrad=True),
    "adamw": lambda p: optim.AdamW(p, lr=0.01, weight_decay=1e-2),
    "adam_without_eps": lambda p: optim.Adam(p, lr=0.01, eps=0.0),
    "adam_fused": lambda p: optim.Adam(p, lr=0.01, fused=True),
    "rmsprop": lambda p: optim.RMSprop(p, lr=0.01, momentum=0.9, weight_decay=1e-2, centered=True),
    "adagrad": lambda p: optim.Adagrad(p, lr=0.01),
    "adadelta": lambda p: optim.Adadelta(p),
    "rprop": lambda p: optim.Rprop(p, lr=0.01),
    "adafactor": lambda p: optim.Adafactor(p, lr=0.01),
    "adamax": lambda p: optim.Adamax(p, lr=0.01, weight_decay=1e-2),
    "nadam": lambda p: optim.NAdam(p, lr=0.01, weight_decay=1e-2, decoupled_weight_decay=True),
    "radam": lambda p: optim.RAdam(p, lr=0.01, weight_decay=1e-2),
    "asgd": lambda p: optim.ASGD(p, lr=0.01, t0=0, weight_decay=1e-2),
    # for matrices only
    "muon": lambda p: optim.Muon([x for x in p if x.dim() == 2], lr=0.01, weight_decay=1e-2),
}


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(4, 8, 3), nn.Tanh(), nn.Flatten(), nn.Linear(32, 4))


def train(model, optimizer, steps=3, clip=None, scaler=None, accumulate=1, dtype=torch.float32):
    generator = torch.Generator().manual_seed(1)
    scaler = scaler or torch.amp.GradScaler("cpu", enabled=False)
    for _ in range(steps):
        optimizer.zero_grad()
        for _ in range(accumulate):
            examples = torch.randn(2, 4, 4, 4, generator=generator).to(dtype)
            scaler.scale(model(examples).square().sum()).backward()
        if clip:
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(model.parameters(), clip)
        scaler.step(optimizer)
        scaler.update()
