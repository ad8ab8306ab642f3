"""Serve: stages forked from one process that has the libraries loaded, so that short ones pay once.

A client hands over its arguments, folder, environment and output streams through a Unix socket; the
stage runs in a fork and dies with its client. Without a server the same stage runs in the client.
"""

import importlib
import json
import os
import signal
import socket
import sys
import threading
import traceback
from collections.abc import Callable
from pathlib import Path

WATCH_SECONDS = 0.5  # how soon the server notices that the pipeline it serves is gone
LARGEST_REQUEST = 1 << 20  # bytes; arguments and environment of one command
ROOT = Path(__file__).resolve().parent
# what stages import late: builders, tasks, and what torch loads at its first optimizer step
LATE = ("torch._dynamo", "workbench.track", "torchmetrics.functional.text")
ROOMS = ("models", "tasks", "stages")


class ServeError(RuntimeError):
    """A server that cannot be started, or a stage that ended without saying how."""


def serve(address: Path, parent: int, run: Callable[[list[str]], int]) -> None:
    """Fork a process for each request to `run` its arguments, while process `parent` lives.

    The socket is there at once; requests wait until the libraries are loaded. No thread may start
    and no CUDA context may open before a fork, so nothing here computes.
    """
    address.parent.mkdir(parents=True, exist_ok=True)
    address.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(address))
        listener.listen(256)
        listener.settimeout(WATCH_SECONDS)
        _load()
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # ended forks need no waiting for
        while _lives(parent):
            try:
                connection, _ = listener.accept()
            except TimeoutError:
                continue
            if os.fork() == 0:
                listener.close()
                _serve_one(connection, run)
            connection.close()
    address.unlink(missing_ok=True)


def ask(address: Path, arguments: list[str]) -> int | None:
    """The exit status of the arguments run by the server, or None if nobody serves there."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        try:
            connection.connect(str(address))
        except (FileNotFoundError, ConnectionRefusedError):
            return None
        request = {"arguments": arguments, "folder": os.getcwd(), "environment": dict(os.environ)}
        text = json.dumps(request).encode()
        streams = [stream.fileno() for stream in (sys.stdout, sys.stderr)]
        socket.send_fds(connection, [len(text).to_bytes(8, "big")], streams)
        connection.sendall(text)
        status = connection.recv(1)
    if not status:
        raise ServeError("the process that ran the stage was killed; run the command again")
    return status[0]


def _load() -> None:
    for name in LATE:
        importlib.import_module(name)
    for room in ROOMS:
        for path in sorted((ROOT / room).glob("[!_]*.py")):
            importlib.import_module(f"workbench.{room}.{path.stem}")


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


def _serve_one(connection: socket.socket, run: Callable[[list[str]], int]) -> None:
    """In the fork: become the client's command, answer with its exit status, and end."""
    signal.signal(
        signal.SIGCHLD, signal.SIG_DFL
    )  # loaders' workers and subprocesses are waited for
    size, streams, _, _ = socket.recv_fds(connection, 8, 2)
    request = json.loads(_received(connection, int.from_bytes(size, "big")))
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["environment"])
    for number, stream in zip((1, 2), streams, strict=True):
        os.dup2(stream, number)
        os.close(stream)
    threading.Thread(target=_die_with, args=(connection,), daemon=True).start()
    status = 1
    try:
        status = run(request["arguments"])
    finally:  # the fork's outermost frame: what went wrong is shown, and told by the status
        if sys.exception():
            traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
        connection.sendall(bytes([status]))
        os._exit(status)  # the server's own exit handlers are not this process's


def _received(connection: socket.socket, size: int) -> bytes:
    if size > LARGEST_REQUEST:
        raise ServeError(f"a request of {size} bytes; the largest allowed is {LARGEST_REQUEST}")
    parts = b""
    while len(parts) < size:
        part = connection.recv(size - len(parts))
        if not part:
            os._exit(1)  # the client died while asking
        parts += part
    return parts


def _die_with(connection: socket.socket) -> None:
    """Wait for the client's end of the connection to close, as it does when the client dies."""
    connection.recv(1)  # the client sends nothing more: this returns when it is gone
    os.kill(os.getpid(), signal.SIGKILL)
