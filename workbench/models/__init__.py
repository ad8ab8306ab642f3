"""Networks: one file per builder, each with `build(...)`, found by the file's name."""

import importlib

from torch import nn


def build(builder: str, **arguments: object) -> nn.Module:
    """The network that `workbench/models/<builder>.py` makes of the arguments."""
    return importlib.import_module(f"workbench.models.{builder}").build(**arguments)
