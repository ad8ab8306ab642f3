"""The CUDA toolkit's parts that tests of the kernels need, and the emulator that runs kernels."""

import os
from pathlib import Path

import pytest

from sparse24 import build
from tests.kernels.emulated import EMULATOR, Emulator, Hopper, compile_for_cpu, hopper_core


@pytest.fixture(scope="session")
def compiler() -> str:
    """nvcc's path."""
    try:
        return build.compiler()
    except build.BuildError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def emulator(compiler: str, tmp_path_factory: pytest.TempPathFactory) -> Emulator:
    """pack.cu and the sm_80 kernel, compiled for the CPU against the emulator."""
    library = tmp_path_factory.mktemp("emulator") / "emulated.so"
    sources = [EMULATOR / "emulated.cpp", EMULATOR / "threads.cpp"]
    return Emulator(compile_for_cpu(compiler, library, sources, "-O1", f"-I{build.SOURCES}"))


@pytest.fixture(scope="session")
def hopper(compiler: str, tmp_path_factory: pytest.TempPathFactory) -> Hopper:
    """The sm_90 kernel of $SPARSE24_CSRC, by default this checkout's, every tile of it."""
    sources = Path(os.environ.get("SPARSE24_CSRC", build.SOURCES))
    folder = tmp_path_factory.mktemp("hopper")
    return Hopper(compiler, folder, sources, hopper_core(compiler, folder))
