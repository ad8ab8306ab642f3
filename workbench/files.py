"""Files: written whole or not at all, by one process at a time; what a disk refuses is named."""

import errno
import fcntl
import os
import pickle
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

LOCK = "running.lock"
ADVICE = {
    errno.ENOSPC: "free some space",
    errno.EDQUOT: "raise the quota or delete something",
    errno.EFBIG: "raise the limit on the size of files (ulimit -f)",
    errno.EROFS: "mount it for writing, or work in a copy",
    errno.EACCES: "give this user the right to write there",
    errno.EPERM: "give this user the right to write there",
}


# what readers of damaged files raise: torch.load of a mutated file has been seen with each of these
DAMAGED = (
    SafetensorError,
    pickle.UnpicklingError,
    RuntimeError,
    EOFError,
    OSError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    ArithmeticError,
    MemoryError,
    AssertionError,
)


class FileError(RuntimeError):
    """A file that cannot be written, or is being written by another; the message says why."""


@contextmanager
def refusing(path: Path) -> Iterator[None]:
    """What the system refuses while `path` is written, as a FileError that names it."""
    try:
        yield
    except OSError as error:
        raise _named(path, error.errno, error.strerror or str(error)) from error
    except SafetensorError as error:  # which hides the number in its text
        found = re.search(r"os error (\d+)", str(error))
        if not found:
            raise
        raise _named(path, int(found[1]), os.strerror(int(found[1]))) from error


def _named(path: Path, number: int | None, why: str) -> FileError:
    advice = ADVICE.get(number or 0, "see to its disk")
    return FileError(
        f"{path} cannot be written: {why}; {advice} and run the command again, which goes on from "
        "the last state that was saved"
    )


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A path to write to, renamed to `path` afterwards, so that no reader ever sees a half file.

    What was there before stays if writing fails.
    """
    part = path.with_name(path.name + ".part")
    with refusing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield part
            with part.open("rb") as file:
                os.fsync(file.fileno())  # or a power cut may leave the name without the content
        except BaseException:
            part.unlink(missing_ok=True)
            raise
        part.replace(path)


def write_text(path: Path, text: str) -> None:
    """Write a text file, whole or not at all."""
    with whole(path) as part:
        part.write_text(text)


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Hold a folder for this process; it is free again when the process ends, however it ends."""
    path = folder / LOCK
    with refusing(path):
        folder.mkdir(parents=True, exist_ok=True)
        file = path.open("a")
    with file:
        try:
            # a process's own lock: a loader's worker that outlives it does not hold it
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError) as error:
            raise FileError(
                f"{folder}: another process is at work there; wait until it ends, or end it"
            ) from error
        yield
