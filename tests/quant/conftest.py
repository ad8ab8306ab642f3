"""Fixtures: choices of what is INT8, and a calibrated network."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from workbench import quant


@pytest.fixture
def settings() -> SimpleNamespace:
    """Everything INT8, by the largest value."""
    return SimpleNamespace(
        calibrator="max", percentile=99.99, keep_fp16=(), attention=True, adds=True
    )


@pytest.fixture
def calibrated(settings: SimpleNamespace):
    """A function that gives the INT8 form of a network calibrated on some inputs."""

    def of(model: nn.Module, *inputs: torch.Tensor) -> quant.Quantized:
        with torch.no_grad(), quant.Observing(model, settings) as observed:
            model(*inputs)
        return quant.quantize(model, observed.ranges())

    return of
