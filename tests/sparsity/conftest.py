"""Fixtures of the permutation tests: networks from a function, and the check of a permuted one."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from workbench.sparsity import is_nm, permute, prune


class Net(nn.Module):
    """Named layers and a function of them and the input."""

    def __init__(self, forward: Callable[..., Tensor], **layers: nn.Module | nn.Parameter) -> None:
        super().__init__()
        for name, layer in layers.items():
            setattr(self, name, layer)
        self._run = forward

    def forward(self, *args: Tensor, **kwargs: Tensor) -> Tensor:
        return self._run(self, *args, **kwargs)


@pytest.fixture
def net() -> type[nn.Module]:
    return Net


@pytest.fixture
def check() -> Callable[..., None]:
    """A function that permutes and prunes; exactly the weights it is given must change and gain."""
    torch.manual_seed(0)

    def run(model: nn.Module, shape: tuple[int, ...], *layers: str) -> None:
        gains = [f"{layer}.weight" for layer in layers]
        randomize_norms(model)
        before = copy.deepcopy(model).eval().double()
        report = permute(model, torch.randn(shape), rounds=20)
        assert report.largest_error <= 1e-9
        # on an input that is none of the proof's
        x = torch.randn(shape, generator=torch.Generator().manual_seed(7)).double()
        after = copy.deepcopy(model).eval().double()
        torch.testing.assert_close(after(x), before(x), rtol=1e-9, atol=1e-9)
        assert report.total.after >= report.total.before
        changed = {layer.name for layer in report.layers if layer.after != layer.before}
        assert changed == {name.replace("in_proj.weight", "in_proj_weight") for name in gains}
        for layer in report.layers:
            assert_bounded(layer)
        assert_pruned_as_reported(model, report.layers)

    return run


def assert_bounded(layer: Any) -> None:
    slack = 1 + 1e-9
    assert max(layer.before, layer.after) <= layer.row_bound * slack
    assert layer.row_bound <= layer.unstructured * slack
    assert bool(layer.reason) == (layer.after <= layer.before)


def assert_pruned_as_reported(model: nn.Module, layers: Any) -> None:
    prune(model)
    parameters = dict(model.named_parameters())
    for layer in layers:
        weight = parameters[layer.name]
        assert is_nm(weight, 2, 4)
        kept = weight.detach().abs().sum(dtype=torch.float64).item()
        assert kept == pytest.approx(layer.after, rel=1e-6)


def randomize_norms(model: nn.Module) -> None:
    """Every norm's parameters and statistics differ by channel."""
    for module in model.modules():
        for name in ("weight", "bias", "running_mean"):
            tensor = getattr(module, name, None)
            if tensor is not None and tensor.dim() == 1:
                nn.init.normal_(tensor)
        if getattr(module, "running_var", None) is not None:
            nn.init.uniform_(module.running_var, 0.5, 2)
