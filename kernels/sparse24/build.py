"""Compiling the kernels: at first use, or ahead of time by `python -m sparse24`.

The library lies in a folder named by a hash of the sources and flags, so an edit or another
compiler makes a new one; a build is renamed into place whole, so processes may build at once.
Nothing of torch is in the .cu files; ops.cpp uses the stable ABI, so one library serves every
torch >= 2.11 and every Python.
"""

import hashlib
import os
import shutil
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import torch

SOURCES = Path(__file__).parent / "csrc"
LIBRARY = "sparse24.so"
SUFFIXES = {".cu", ".cuh", ".cpp", ".h"}  # what a compiler leaves beside them is no source
FLAGS = ("-O3", "-std=c++17", "-Xcompiler", "-fPIC", "-lineinfo", "-Xfatbin", "-compress-all")
# which machine code each kernel is built for, by the start of its file's name
ARCHITECTURES = {
    "sm90": ("90a",),
    "sm80": ("80", "89", "90a"),
    "pack": ("80", "89", "90a"),
}
TORCH = ("-DTORCH_TARGET_VERSION=0x020b000000000000", "-DUSE_CUDA")  # the stable ABI of 2.11


class BuildError(RuntimeError):
    """The kernels cannot be compiled or loaded here."""


def cache_root() -> Path:
    """The folder of the builds: $SPARSE24_CACHE, else the user's cache."""
    given = os.environ.get("SPARSE24_CACHE")
    return Path(given) if given else Path.home() / ".cache" / "sparse24"


def compiler() -> str:
    """The path of nvcc."""
    home = os.environ.get("CUDA_HOME", "/usr/local/cuda")
    found = shutil.which("nvcc") or shutil.which("nvcc", path=f"{home}/bin")
    if found is None:
        raise BuildError(
            "compiling the kernels needs nvcc of CUDA 12.8 or later, and none was found: install "
            "the CUDA toolkit, or name its folder in CUDA_HOME"
        )
    return found


def commands(nvcc: str, out: Path) -> list[tuple[list[str], Path]]:
    """A command and its object file for each source."""
    headers = [f"-I{Path(torch.__file__).parent / 'include'}"]
    result = []
    for source in sorted(SOURCES.glob("*.cu")):
        targets = [
            f"-gencode=arch=compute_{name},code=sm_{name}"
            for name in ARCHITECTURES[source.name.split("_")[0].removesuffix(".cu")]
        ]
        target = out / f"{source.stem}.o"
        result.append(([nvcc, *FLAGS, *targets, "-c", str(source), "-o", str(target)], target))
    for source in sorted(SOURCES.glob("*.cpp")):
        flags = [*TORCH, *headers] if source.name == "ops.cpp" else []
        target = out / f"{source.stem}.o"
        line = [nvcc, "-O2", *FLAGS[1:4], *flags, "-c", str(source), "-o", str(target)]
        result.append((line, target))
    return result


def digest(nvcc: str) -> str:
    """What a build depends on: sources, flags, compiler."""
    seen = hashlib.sha256()
    for path in sorted(p for p in SOURCES.iterdir() if p.suffix in SUFFIXES):
        seen.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    version = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=True).stdout
    seen.update(repr((FLAGS, sorted(ARCHITECTURES.items()), TORCH, version)).encode())
    return seen.hexdigest()[:16]


def build(jobs: int | None = None) -> Path:
    """The path of the library, compiled if it is not there yet."""
    nvcc = compiler()
    folder = cache_root() / digest(nvcc)
    if (folder / LIBRARY).exists():
        return folder / LIBRARY
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix="building-") as name:
        made = Path(name)
        work = commands(nvcc, made)
        # the longest first: those of the most instances
        work.sort(key=lambda job: "sm90" not in job[1].name)
        with ThreadPoolExecutor(jobs or os.cpu_count()) as pool:
            list(pool.map(_run, (line for line, _ in work)))
        objects = [str(target) for _, target in work]
        torch_libraries = [f"-L{Path(torch.__file__).parent / 'lib'}", "-ltorch_cpu", "-lc10"]
        line = [nvcc, "-shared", "-cudart", "static", *objects, *torch_libraries, "-ldl"]
        _run([*line, "-o", str(made / LIBRARY)])
        for target in objects:
            Path(target).unlink()
        _place(made, folder)
    return folder / LIBRARY


@cache
def load() -> None:
    """Load the library, which gives the ops of ops.py their CUDA side."""
    torch.ops.load_library(str(build()))


def _run(line: list[str]) -> None:
    done = subprocess.run(line, capture_output=True, text=True)
    if done.returncode:
        raise BuildError(f"{' '.join(line)}\nfailed with\n{done.stdout}{done.stderr}")


def _place(made: Path, folder: Path) -> None:
    """Rename the finished build into place; another process may have been first."""
    final = Path(tempfile.mkdtemp(dir=folder.parent, prefix="built-"))
    shutil.move(str(made / LIBRARY), final / LIBRARY)
    try:
        final.rename(folder)
    except OSError:
        shutil.rmtree(final)
        if not (folder / LIBRARY).exists():
            raise
