"""A stand for faults: processes that have the libraries loaded run commands, and are killed there.

Started as a script it reads one request a line (JSON: arguments, folder, and what to do to them)
and answers with the exit status of a fork, negative for a signal. A fork costs a tenth of a second
where a process of its own would load the libraries for six.
"""

import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
FORBIDDEN = ("socket.connect", "socket.getaddrinfo", "socket.sendto")


class Stand:
    """Commands of the workbench in a folder that has experiments, killed or hindered on request."""

    def __init__(self, folder: Path) -> None:
        """Load the libraries; requests begin when that is done."""
        environment = os.environ | {
            "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": "1",
            "TQDM_DISABLE": "1",
            "MLFLOW_TRACKING_URI": "sqlite:///mlflow.db",
        }
        self.folder = folder
        self.process = subprocess.Popen(
            [sys.executable, str(Path(__file__).resolve())],
            cwd=folder,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout.readline() == "ready\n"

    def run(self, *arguments: str, folder: Path, **hindrance: Any) -> tuple[int, str]:
        """Exit status (negative: the signal) and what was printed; `_hinder` has the hindrances."""
        request = {"arguments": arguments, "folder": str(folder), "hindrance": hindrance}
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        answer = json.loads(self.process.stdout.readline())
        return answer["status"], (folder / "printed").read_text(errors="replace")

    def close(self) -> None:
        """End the process."""
        self.process.stdin.close()
        self.process.wait(timeout=30)


def _answer(request: dict[str, Any]) -> int:
    """The exit status of a fork that runs the request, killed after `seconds` if asked to."""
    hindrance = request["hindrance"]
    child = os.fork()
    if child == 0:
        _run(request)
    end = time.monotonic() + hindrance.get("seconds", 300.0)
    while time.monotonic() < end:
        found, status = os.waitpid(child, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.002)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return -signal.SIGKILL


def _run(request: dict[str, Any]) -> None:
    from workbench import cli, dag, resolve

    os.chdir(request["folder"])
    printed = os.open("printed", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
    os.dup2(printed, 1)
    os.dup2(printed, 2)
    resolve.EXPERIMENTS = Path("experiments").resolve()
    status = 1
    try:
        _hinder(**request["hindrance"])
        dag.spec_of.cache_clear()
        status = cli.run(request["arguments"])
    finally:
        if sys.exception():
            sys.excepthook(*sys.exc_info())
        sys.stdout.flush()
        os._exit(status)


def _hinder(
    seconds: float = 0.0,
    event: int | None = None,
    largest_file: int | None = None,
    clock: float = 0.0,
    user: int | None = None,
    network: bool = True,
) -> None:
    """Hinder this process: `seconds` is for the parent.

    `event`: die before this opening, renaming or removal of a file, counted from 0.
    `largest_file`: bytes, after which the system refuses to write. `clock`: seconds by which the
    clock goes back each time it is read. `user`: go on as this user. Without `network` the first
    use of a socket ends the process.
    """
    if event is not None:
        sys.addaudithook(_Killer(event))
    if largest_file is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, largest_file))
    if clock:
        now, reads = time.time, iter(range(1 << 62))
        time.time = lambda: now() - clock * next(reads)
    if user is not None:
        os.setgroups([])
        os.setresgid(user, user, user)
        os.setresuid(user, user, user)
    if not network:
        sys.addaudithook(_refuse_sockets)


class _Killer:
    def __init__(self, events: int) -> None:
        self.left, self.here = events, os.getcwd()

    def __call__(self, name: str, given: tuple) -> None:
        if name == "open":
            path, _, flags = given
            counts = isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        else:
            path, counts = given[0] if given else "", name in ("os.rename", "os.remove", "os.mkdir")
        if not counts or "results" not in str(path):
            return
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        self.left -= 1


def _refuse_sockets(name: str, given: tuple) -> None:
    if name in FORBIDDEN:
        print(f"{name}: {given[1:]}", flush=True)
        os._exit(99)


def main() -> None:
    """Answer requests until there are no more."""
    import torch

    from workbench import serve

    torch.set_num_threads(1)
    serve._load()
    print("ready", flush=True)
    for line in sys.stdin:
        print(json.dumps({"status": _answer(json.loads(line))}), flush=True)


if __name__ == "__main__":
    main()
