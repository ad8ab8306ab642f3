"""Inventory: what each network is, counted on the meta device from its spec alone."""

import csv
import json
import math
from dataclasses import asdict
from typing import Any

import torch
from torch import nn
from torchvision.ops import FrozenBatchNorm2d

from workbench import dag, models, resolve, sparsity, tasks

RULES = ("c4", "asp", "c4+")


def meta_network(network: str, scale: str = "full") -> nn.Module:
    """The network of the last phase without storage, in the shape that its data set declares."""
    return built(network, scale, "meta")


def built(network: str, scale: str, device: torch.device | str) -> nn.Module:
    """The network of the last phase on a device, with random weights."""
    spec = dag.spec_of(network, "2to4", scale)
    wanted, phase = spec.model_of(spec.last_phase), spec.phases[spec.last_phase]
    with torch.device(device):
        return models.build(
            wanted.build,
            **wanted.args,
            width=wanted.width,
            depth=wanted.depth,
            **tasks.declared_shape(phase),
        )


def row(network: str, scale: str = "full") -> dict[str, Any]:
    """Name, family, tasks, metric, parameters, eligible weights by rule, origin of a network."""
    spec = dag.spec_of(network, "2to4", scale)
    kind = tasks.class_of(spec.phases[spec.last_phase])
    model = meta_network(network, scale)
    trained = eligible(model, "c4")
    model.requires_grad_(
        True
    )  # counts are of the architecture; what a recipe freezes is told apart
    return {
        "network": network,
        "title": spec.title,
        "family": (spec.talk or "").partition("/")[0],
        "tasks": [phase.task for phase in spec.phases.values()],
        "repeat_from": spec.repeat_from,
        "metric": kind.metric,
        "higher_is_better": kind.higher_is_better,
        "parameters": parameters(model),
        **(counts := {f"eligible_{rule}": eligible(model, rule) for rule in RULES}),
        "frozen_eligible": counts["eligible_c4"] - trained,
        "builder": spec.model.build,
        "source": spec.source,
        "published": _published(spec.talk),
    }


def explained(network: str, scale: str, rule: str, as_json: bool) -> str:
    """Which weights of a network a rule prunes and why not the others, as text or JSON."""
    model = meta_network(network, scale)
    layers = sparsity.explain(model, rule)
    if not as_json:
        return sparsity.as_text(model, layers)
    found = {"layers": [asdict(layer) for layer in layers]}
    return json.dumps(found | {"totals": sparsity.totals(model, layers)}, indent=1)


def parameters(model: nn.Module) -> int:
    """How many parameters there are, those of frozen batch norms included."""
    norms = [module for module in model.modules() if isinstance(module, FrozenBatchNorm2d)]
    frozen = sum(norm.weight.numel() + norm.bias.numel() for norm in norms)
    return frozen + sum(parameter.numel() for parameter in model.parameters())


def eligible(model: nn.Module, rule: str) -> int:
    """How many weights a rule lets a pattern touch."""
    layers = sparsity.explain(model, rule)
    return sum(math.prod(layer.shape) for layer in layers if layer.eligible)


def _published(talk: str | None) -> str:
    """Where the original is defined, from the table of the talk's networks."""
    with (resolve.EXPERIMENTS / "talk" / "networks.csv").open(newline="") as file:
        found = {row["network"]: row["source"] for row in csv.DictReader(file)}
    return found.get((talk or "").partition("/")[2], "")
