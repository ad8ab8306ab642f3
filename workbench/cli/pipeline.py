"""The commands that make records: each stage, all stages of a network, and their server."""

import argparse
import contextlib
import os
from pathlib import Path

from workbench import current, dag, failure, files, serve
from workbench.cli import arguments as shared
from workbench.cli.errors import user_errors
from workbench.record import Cell
from workbench.sections import STAGES


def register(commands: shared.Commands) -> None:
    """Add dense, prune, retrain, quantize, run and serve."""
    for stage in STAGES:
        added = shared.add(commands, stage, _stage, f"run stage {stage} of one cell")
        shared.add_cell(added, treatment="dense" if stage == "dense" else "2to4")
        _add_manner(added)

    added = shared.add(
        commands, "run", _run, "run all stages that a study needs of a network, in one process"
    )
    added.add_argument("network")
    added.add_argument("--study", default="accuracy")
    added.add_argument("--seed", type=int, default=0)
    shared.add_scale(added)
    _add_manner(added)

    added = shared.add(
        commands, "serve", _serve, "fork stages for the process PARENT, libraries loaded once"
    )
    added.add_argument("parent", type=int, help="the pipeline's process; the server ends with it")


def _add_manner(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    parser.add_argument("--no-track", action="store_true", help="do not mirror to MLflow")


def _stage(arguments: argparse.Namespace) -> None:
    _attempt(shared.cell(arguments, arguments.command), arguments)


def _run(arguments: argparse.Namespace) -> None:
    wanted = dag.study_cells(
        arguments.study, arguments.scale, [arguments.network], [arguments.seed]
    )
    cells = list(dict.fromkeys(step for end in wanted for step in dag.chain(end)))
    due = current.due(cells, Path(dag.RESULTS))
    for cell in cells:
        if cell in due:
            _attempt(cell, arguments)
        else:
            print(f"{dag.record_path(cell)}: is current", flush=True)


def _attempt(cell: Cell, arguments: argparse.Namespace) -> None:
    """Run a cell; an error is kept for the tables, which have a dash in its place."""
    folder = Path(dag.RESULTS, cell.folder)
    try:
        _run_cell(cell, arguments)
    except user_errors() as error:
        # a folder that cannot be written: the error itself tells
        with contextlib.suppress(OSError):
            failure.remember(folder, error)
        raise
    failure.forget(folder)


def _run_cell(cell: Cell, arguments: argparse.Namespace) -> None:
    import torch

    from workbench import stages

    torch.set_num_threads(arguments.threads)
    work = shared.work(cell)
    if not work.accelerator.is_main_process:  # another of `accelerate launch`; the main one writes
        stages.run(work)
    else:
        with files.alone(work.out):
            _recorded(work, arguments.no_track)
            work.forget_resume()
    work.accelerator.wait_for_everyone()  # the next stage reads what the main process wrote


def _recorded(work, without_mirror: bool) -> None:  # noqa: ANN001 - a Work, which imports torch
    from workbench import stages

    path = work.out / "record.json"
    if without_mirror:
        stages.run(work).write(path)
        return
    from workbench import track

    task = work.spec.phases[work.spec.last_phase].task
    lock = work.results / work.cell.scale / work.cell.network / track.LOCK
    with track.following(work.cell, task, work.digest, lock) as mirror:
        work.log = mirror.log
        record = stages.run(work).model_copy(update={"mlflow_run_id": mirror.run_id})
        record.write(path)
        mirror.finish(record, path)


def _serve(arguments: argparse.Namespace) -> None:
    from workbench.cli import run  # late: that module imports this one

    address = os.environ.get("WORKBENCH_SERVER")
    if not address:
        raise serve.ServeError("WORKBENCH_SERVER is not set; give the path of the socket to make")
    serve.serve(Path(address), arguments.parent, run)
