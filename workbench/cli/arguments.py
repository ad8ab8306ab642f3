"""What commands share: how one is added, the arguments that name a cell, and the cell's work."""

import argparse
import os
from collections.abc import Callable
from pathlib import Path

from workbench import dag
from workbench.record import Cell
from workbench.sections import Stage

Commands = argparse._SubParsersAction  # what `add_subparsers` returns; argparse has no public name


def add(
    commands: Commands, name: str, run: Callable[[argparse.Namespace], None], text: str
) -> argparse.ArgumentParser:
    """The parser of a new command, which calls `run`; `text` is its help."""
    parser = commands.add_parser(name, help=text, description=text)
    parser.set_defaults(run=run)
    return parser


def add_scale(parser: argparse.ArgumentParser, default: str = "smoke") -> None:
    """Give a command `--scale`."""
    parser.add_argument("--scale", default=default, help="smoke, lite or full")


def add_cell(parser: argparse.ArgumentParser, treatment: str = "2to4") -> None:
    """Give a command the arguments that name a cell, but for its stage."""
    parser.add_argument("network")
    parser.add_argument("--treatment", default=treatment)
    parser.add_argument("--seed", type=int, default=0)
    add_scale(parser)


def add_results(parser: argparse.ArgumentParser) -> None:
    """Give a command `--root`, the folder that its records are in."""
    parser.add_argument("--root", type=Path, default=Path(dag.RESULTS), help="results folder")


def cell(arguments: argparse.Namespace, stage: Stage) -> Cell:
    """The cell that the arguments of `add_cell` name, at a stage."""
    return Cell(
        scale=arguments.scale,
        network=arguments.network,
        treatment=arguments.treatment,
        stage=stage,
        seed=arguments.seed,
    )


def work(cell: Cell):  # noqa: ANN201 - a Work of workbench.stages, which imports torch
    """What a stage works on: the cell, its spec, the results folder, and the data folder."""
    spec = dag.spec_of(cell.network, cell.treatment, cell.scale)
    from workbench import stages

    data = Path(os.environ.get("WORKBENCH_DATA", "data"))
    return stages.Work(cell, spec, Path(dag.RESULTS), data)
