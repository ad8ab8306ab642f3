"""Tasks: what a batch is, what its loss is, and how a network is judged on held-out data."""

import importlib
from pathlib import Path
from typing import Any

from workbench import resolve
from workbench.sections import Phase
from workbench.tasks.base import Task


def class_of(phase: Phase) -> type[Task]:
    """The task of a phase: `Task` of the module of its name, or the class of its objective."""
    module = importlib.import_module(f"workbench.tasks.{phase.task}")
    return getattr(module, (phase.objective or "task").capitalize())


def open_task(phase: Phase, seed: int, root: Path) -> Task:
    """The task of a phase over its data; `root` holds the data sets that are not shipped."""
    return class_of(phase)(phase, seed, root)


def declared_shape(phase: Phase) -> dict[str, Any]:
    """The builder arguments that the catalog declares for a phase's data, without opening it."""
    return class_of(phase).declared_shape(phase, resolve.catalog()[phase.data.name])
