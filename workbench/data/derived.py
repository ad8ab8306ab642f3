"""Derived data: arrays that take seconds to make from data files, kept for the next process.

A file is named by a hash of all that it is made from, so another file, limit, library or version of
its maker makes a new one, and it is renamed into place, so processes may make it at once. Deleting
the folder costs seconds, nothing else.
"""

import hashlib
import json
import os
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save

from workbench.files import DAMAGED

Arrays = dict[str, np.ndarray]


def cache_root() -> Path:
    """The folder of derived data: $WORKBENCH_CACHE, else the user's cache.

    RuntimeError if there is neither, as for a user without a home.
    """
    given = os.environ.get("WORKBENCH_CACHE")
    return Path(given) if given else Path.home() / ".cache" / "workbench"


def derived(made_of: dict[str, Any], make: Callable[[], Arrays]) -> Arrays:
    """The arrays that `make` returns, read back if a process has kept them before.

    `made_of` is all that they depend on, in JSON: digests of files, limits, versions. A file that
    is damaged and a folder that cannot be written are told, and nothing is refused.
    """
    key = json.dumps(made_of, sort_keys=True)
    try:
        path = cache_root() / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.safetensors"
    except RuntimeError as error:
        _not_kept(str(error))
        return make()
    found = _read(path, key)
    if found is None:
        found = make()
        _write(path, key, found)
    return found


def _read(path: Path, key: str) -> Arrays | None:
    """What was kept, or None if there is nothing whole."""
    try:
        if not path.exists():
            return None
        with safe_open(path, "numpy") as file:
            told = file.metadata() or {}
            found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no dict
        if told != _told(key, found):
            raise ValueError("its content is not what was written")
    except DAMAGED as error:
        print(f"{path}: damaged ({error}); made again", flush=True)
        return None
    return found


def _write(path: Path, key: str, arrays: Arrays) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent, prefix="making-") as folder:
            part = Path(folder, path.name)
            part.write_bytes(save(arrays, _told(key, arrays)))  # with the user's mode, not 0600
            part.replace(path)
    except OSError as error:
        _not_kept(str(error))


@cache
def _not_kept(why: str) -> None:
    """Say once why nothing is kept."""
    print(
        f"derived data is not kept ({why}), so every stage makes it again; name a folder that can "
        "be written in WORKBENCH_CACHE",
        flush=True,
    )


def _told(key: str, arrays: Arrays) -> dict[str, str]:
    """What a file says of itself: what it is made of, and a checksum of its arrays."""
    seen = hashlib.sha256()
    for name, array in sorted(arrays.items()):
        seen.update(f"{name} {array.dtype} {array.shape} ".encode())
        seen.update(np.ascontiguousarray(array).data)
    return {"made_of": key, "sha256": seen.hexdigest()}
