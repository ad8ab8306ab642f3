"""Tasks: what a batch is, what its loss is, and how a network is judged on held-out data."""

import importlib
from pathlib import Path

from workbench.spec import Phase
from workbench.tasks.base import Task


def open_task(phase: Phase, seed: int, root: Path) -> Task:
    """The task of a phase over its data; `root` holds the data sets that are not shipped."""
    return importlib.import_module(f"workbench.tasks.{phase.task}").Task(phase, seed, root)
