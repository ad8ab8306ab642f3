"""The command line as a whole: what it loads, what it refuses, and what help tells."""

import subprocess
import sys

import pytest

from workbench import cli

HEAVY = ("torch", "mlflow", "pandas", "transformers")


def _commands() -> dict[str, object]:
    (commands,) = (a for a in cli.parser()._actions if a.dest == "command")
    return dict(commands.choices)


def test_help_of_the_whole_loads_no_heavy_library() -> None:
    asked = f"""
import sys
from workbench import cli
try:
    cli.run(["--help"])
except SystemExit:
    print("loaded:", *sorted(set({HEAVY!r}) & set(sys.modules)))
"""
    done = subprocess.run(
        [sys.executable, "-c", asked], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.splitlines()[-1] == "loaded:"


@pytest.mark.parametrize("name", _commands())
def test_a_command_says_what_it_does_and_has_a_function(name: str) -> None:
    command = _commands()[name]
    assert command.description
    assert callable(command.get_default("run"))


def test_what_the_user_can_mend_is_one_line_and_status_1(capsys: pytest.CaptureFixture) -> None:
    assert cli.run(["show", "resnet5"]) == 1
    told = capsys.readouterr().err
    assert told.startswith("workbench show: unknown network 'resnet5'")
    assert told.count("\n") == 1


def test_a_reader_that_has_enough_is_one_line() -> None:
    shown = subprocess.Popen(
        [sys.executable, "-m", "workbench.cli", "show", "resnet50"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    shown.stdout.close()
    assert shown.stderr.read() == "workbench show: a pipe was closed before the end\n"
    assert shown.wait() == 1
