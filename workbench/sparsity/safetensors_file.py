"""Files of ours: tensors, and the header that says what they are; damage to either is named."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

from safetensors import SafetensorError, safe_open
from torch import Tensor

from workbench.files import DAMAGED
from workbench.sparsity.names import SparsityError


def read_safetensors(path: str | os.PathLike[str]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a file, on the CPU, and its metadata; SparsityError if it is not whole."""
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            return tensors, file.metadata() or {}
    except SafetensorError as error:
        raise SparsityError(f"{path}: not a whole safetensors file ({error})") from error


@contextmanager
def whole_header(path: str | os.PathLike[str]) -> Iterator[None]:
    """What a header raises that was damaged, as a SparsityError that names the file."""
    try:
        yield
    except SparsityError:
        raise
    except DAMAGED as error:
        why = " ".join(str(error).split())[:120]
        raise SparsityError(
            f"{path}: its header is damaged ({why}); write the file again"
        ) from error
