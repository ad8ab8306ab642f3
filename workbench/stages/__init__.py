"""Stages: dense, prune, retrain, quantize; each turns a spec and files into files and a record."""

import importlib

from workbench.record import Record
from workbench.stages.work import Work


def run(work: Work) -> Record:
    """The record of the stage of `work`, after running it."""
    return importlib.import_module(f"workbench.stages.{work.cell.stage}").run(work)
