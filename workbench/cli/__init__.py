"""The command line: one subcommand per stage, and show, list, validate, track, table, report."""

import argparse
import os
import sys
from pathlib import Path

from workbench import serve
from workbench.cli import benches, experiments, networks, pipeline, tables, tracking, weights
from workbench.cli.errors import user_errors
from workbench.sections import STAGES

GROUPS = (pipeline, weights, experiments, tracking, tables, benches, networks)


def main() -> None:
    """Run a subcommand, a stage in the server of WORKBENCH_SERVER where one answers."""
    given = sys.argv[1:]
    address = os.environ.get("WORKBENCH_SERVER")
    status = None
    if address and given and given[0] in STAGES:
        status = serve.ask(Path(address), given)
    sys.exit(run(given) if status is None else status)


def run(given: list[str]) -> int:
    """The exit status of a subcommand; an error of the user's is one line and status 1.

    What is left to print when its reader goes away, as `head` does, is dropped and so told.
    """
    arguments = parser().parse_args(given)
    try:
        arguments.run(arguments)
        sys.stdout.flush()
    except BrokenPipeError:  # who reads it, as `head`, has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        print(f"workbench {arguments.command}: a pipe was closed before the end", file=sys.stderr)
        return 1
    except user_errors() as error:
        print(f"workbench {arguments.command}: {error}", file=sys.stderr)
        return 1
    return 0


def parser() -> argparse.ArgumentParser:
    """The parser of all subcommands; what it parses has the subcommand's function as `run`."""
    made = argparse.ArgumentParser("workbench", description=__doc__)
    commands = made.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for group in GROUPS:
        group.register(commands)
    return made
