"""The server: the same stage in a fork, its output, its failures, and ends of either side."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from workbench import serve

# stands for the command line: prints its environment and folder, fails, sleeps or is killed
COMMANDS = """
import os, signal, sys, time
from pathlib import Path
from workbench import serve
serve.LATE, serve.ROOMS = (), ()
def run(given):
    if given[0] == "say":
        print("in", Path.cwd().name, os.environ["WORD"])
        print("wrong", file=sys.stderr)
    if given[0] == "raise":
        raise ValueError("what the stage raised")
    if given[0] == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if given[0] == "sleep":
        Path("sleeper").write_text(str(os.getpid()))
        time.sleep(60)
    return int(given[1])
serve.serve(Path("s.sock"), int(sys.argv[1]), run)
"""
ASK = """
import sys
from pathlib import Path
from workbench import serve
sys.exit(serve.ask(Path(sys.argv[1]), sys.argv[2:]))
"""


@pytest.fixture
def server(tmp_path: Path):
    process = subprocess.Popen([sys.executable, "-c", COMMANDS, str(os.getpid())], cwd=tmp_path)
    wait_for((tmp_path / "s.sock").exists)
    yield process
    process.kill()
    process.wait()


def wait_for(true, seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.02)


def asking(tmp_path: Path, *arguments: str) -> subprocess.Popen:
    (tmp_path / "elsewhere").mkdir(exist_ok=True)
    return subprocess.Popen(
        [sys.executable, "-c", ASK, "../s.sock", *arguments],
        cwd=tmp_path / "elsewhere",
        env=os.environ | {"WORD": "given"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_a_fork_has_the_clients_folder_environment_streams_and_status(server, tmp_path) -> None:
    client = asking(tmp_path, "say", "3")
    out, err = client.communicate(timeout=20)
    assert (out, err, client.returncode) == ("in elsewhere given\n", "wrong\n", 3)


def test_what_a_stage_raises_is_shown_and_is_status_1(server, tmp_path) -> None:
    client = asking(tmp_path, "raise", "0")
    _, err = client.communicate(timeout=20)
    assert "what the stage raised" in err
    assert client.returncode == 1


def test_a_killed_fork_is_an_error_of_the_client(server, tmp_path) -> None:
    client = asking(tmp_path, "die", "0")
    _, err = client.communicate(timeout=20)
    assert "was killed" in err
    assert client.returncode == 1


def test_a_fork_dies_with_its_client(server, tmp_path) -> None:
    client = asking(tmp_path, "sleep", "0")
    mark = tmp_path / "elsewhere" / "sleeper"
    wait_for(lambda: mark.exists() and mark.read_text())
    fork = int(mark.read_text())
    client.send_signal(signal.SIGKILL)
    client.wait()
    wait_for(lambda: not Path(f"/proc/{fork}").exists())


def test_the_server_ends_with_the_pipeline_it_serves(tmp_path: Path) -> None:
    pipeline = subprocess.Popen(["sleep", "60"])
    command = [sys.executable, "-c", COMMANDS, str(pipeline.pid)]
    process = subprocess.Popen(command, cwd=tmp_path)
    wait_for((tmp_path / "s.sock").exists)
    pipeline.kill()
    pipeline.wait()
    assert process.wait(timeout=20) == 0
    assert not (tmp_path / "s.sock").exists()


def test_nobody_serving_is_told_by_none(tmp_path: Path) -> None:
    assert serve.ask(tmp_path / "absent.sock", ["dense"]) is None
    (tmp_path / "stale.sock").touch()
    assert serve.ask(tmp_path / "stale.sock", ["dense"]) is None
