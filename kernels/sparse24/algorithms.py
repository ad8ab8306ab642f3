"""Which algorithms of cuSPARSELt finish: asked of child processes once per device, and kept.

Some of float16 finish when called and wait for ever when a CUDA graph replays them (number 15 on an
H100, of cuSPARSELt 0.8.0). Nothing in a process can end a kernel that waits; so each number
first runs in a child (cusparselt.py), which is killed if it falls silent.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import cache, partial
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Lock, Thread, Timer

import torch

from . import bench, build
from .bench import BenchError

NUMBERS = range(64)  # asked about: torch 2.11 does not tell how many the library has
CHILDREN = 4  # at once, as a start takes seconds
START_SECONDS = 120.0  # until a child is ready: it imports torch, perhaps from a slow disk
QUIET_SECONDS = 20.0  # between two lines of a child; on an idle GPU a step takes well under one
MOST_HANGS = 4  # then the numbers left are not asked: this bounds the GPU's time
TRIAL_SECONDS = 60.0  # of a quick timing, which takes well under one

Verdicts = dict[int, str]  # of each number why it is no candidate; empty if it is one
Start = Callable[[], "subprocess.Popen[str]"]


class Algorithms:
    """The verdicts of one pair of types, in a file of JSON."""

    def __init__(self, path: Path) -> None:
        """Reads the file if there is one."""
        self.path = path
        told = json.loads(path.read_text()) if path.exists() else {}
        self.verdicts: Verdicts = {int(number): why for number, why in told.items()}

    @property
    def finishing(self) -> list[int]:
        """The numbers that may run in this process."""
        return [number for number, why in self.verdicts.items() if not why]

    @property
    def left_out(self) -> str:
        """The other numbers and why, as `15, 17-20: does not finish; 21-63: refused`."""
        groups: dict[str, list[int]] = {}
        for number, why in self.verdicts.items():
            if why:
                groups.setdefault(why, []).append(number)
        return "; ".join(f"{_ranges(numbers)}: {why}" for why, numbers in groups.items())

    def keep(self, verdicts: Verdicts) -> None:
        """Add the verdicts, and write the file whole and by rename."""
        self.verdicts = dict(sorted((self.verdicts | verdicts).items()))
        self.path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=self.path.parent, prefix=self.path.name)
        with os.fdopen(handle, "w") as file:
            json.dump(self.verdicts, file, indent=1)
        Path(name).replace(self.path)

    @contextmanager
    def watched(
        self,
        number: int,
        where: str,
        seconds: float = TRIAL_SECONDS,
        end: Callable[[int], None] = os._exit,
    ) -> Iterator[None]:
        """End the process, with the number noted, if what runs within does not finish.

        For what finished in the child and waits at another size: the next start leaves it out.
        """

        def give_up() -> None:
            self.keep({number: f"does not finish {where}"})
            print(
                f"sparse24: algorithm {number} of cuSPARSELt has not finished {where} in "
                f"{seconds:.0f} s, and cannot be stopped: noted in {self.path}; start again",
                file=sys.stderr,
                flush=True,
            )
            end(1)

        timer = Timer(seconds, give_up)
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()


@cache
def known(element: torch.dtype, out: torch.dtype, device: int) -> Algorithms:
    """What is known of a pair of types on a device; asked now (10 s to a minute) where nothing is.

    Each verdict is kept as it comes, so that a process that is ended on the way loses none.
    """
    with torch.cuda.device(device):
        told = bench.facts()
    types = f"{_name(element)}:{_name(out)}"
    facts = [str(told[name]) for name in ("device", "driver", "torch", "cusparselt")]
    name = " ".join(["cusparselt", types, *facts]).replace("/", "-").replace(":", "-")
    found = Algorithms(build.cache_root() / f"{name}.json")
    if missing := [number for number in NUMBERS if number not in found.verdicts]:
        asked(partial(_started, types, device), missing, told=found.keep)
    return found


def asked(
    start: Start,
    numbers: Iterable[int] = NUMBERS,
    children: int = CHILDREN,
    quiet: float = QUIET_SECONDS,
    told: Callable[[Verdicts], None] = lambda verdicts: None,
) -> Verdicts:
    """The verdict of each number, by several children at once, each started anew after a hang.

    `told` gets each as it comes. BenchError if a child does not start.
    """
    waiting, verdicts, lock = iter(numbers), {}, Lock()
    hangs: list[int] = []

    def following() -> int | None:
        with lock:
            return next(waiting, None) if len(hangs) < MOST_HANGS else None

    def work() -> None:
        child = None
        try:
            while (number := following()) is not None:
                child = child or _Child(start())
                verdicts[number] = child.verdict(number, quiet)
                with lock:
                    told({number: verdicts[number]})
                if child.is_lost:
                    hangs.append(number)
                    child.end()
                    child = None
        finally:
            if child:
                child.end()

    with ThreadPoolExecutor(children) as pool:
        for done in [pool.submit(work) for _ in range(children)]:
            done.result()
    rest = f"not asked, after {len(hangs)} that did not finish"
    unasked = dict.fromkeys(waiting, rest)
    told(unasked)
    return dict(sorted((verdicts | unasked).items()))


class _Child:
    """A process that is given numbers, and says what it does and how each ended."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self.process, self.lines, self.is_lost = process, SimpleQueue(), False
        Thread(target=self._read, daemon=True).start()
        line, noise = "", ""
        while line != "ready":
            noise = line
            try:
                line = self.lines.get(timeout=START_SECONDS)
            except Empty:
                line = None
            if line is None:
                self.end()
                raise BenchError(
                    "the process that tries cuSPARSELt's algorithms does not start: "
                    f"{noise or 'it says nothing'}; see `python -m sparse24.cusparselt`"
                )

    def verdict(self, number: int, quiet: float) -> str:
        """Why a number is no candidate, empty if it is one; of a lost child too."""
        with suppress(BrokenPipeError):
            print(number, file=self.process.stdin, flush=True)
        step = last = ""
        while True:
            try:
                line = self.lines.get(timeout=quiet)
            except Empty:
                self.is_lost = True
                return f"does not finish {step}".rstrip()
            if line is None:
                self.is_lost = True
                return f"ends its process {step}: {last}".rstrip(": ")
            kind, _, text = line.partition(" ")
            if kind == "done":
                return text
            step, last = (text, last) if kind == "doing" else (step, line)

    def end(self) -> None:
        """Kill the process; what it runs on the GPU ends with it."""
        self.process.kill()
        self.process.wait()

    def _read(self) -> None:
        for line in self.process.stdout:
            self.lines.put(line.rstrip("\n"))
        self.lines.put(None)


def _started(types: str, device: int) -> "subprocess.Popen[str]":
    line = [sys.executable, "-m", f"{__package__}.cusparselt", "--answer", "--types", types]
    return subprocess.Popen(
        [*line, "--device", str(device)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=Path(__file__).parents[1],  # where python -m finds the package
    )


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _ranges(numbers: list[int]) -> str:
    """Numbers in order as `1, 3-5`."""
    ends: list[list[int]] = []
    for number in numbers:
        if ends and number == ends[-1][1] + 1:
            ends[-1][1] = number
        else:
            ends.append([number, number])
    return ", ".join(f"{a}" if a == b else f"{a}-{b}" for a, b in ends)
