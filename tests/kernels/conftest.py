"""The CUDA toolkit's parts that tests of the kernels need, and the emulator that runs kernels."""

import ctypes
import os
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torch import Tensor

from sparse24 import build
from sparse24.layout import packed_shape
from sparse24.seam import TYPES, Plan

EMULATOR = Path(__file__).parent / "emulator"
HOPPER_PARTS = ("sm90_state", "sm90_wgmma", "sm90_copies", "sm90_tensor_map", "threads")
PACKED_POISON = 0x5A


class Gemm(ctypes.Structure):
    """struct Gemm of csrc/gemm.h."""

    _fields_ = [
        ("tokens", ctypes.c_int),
        ("in_features", ctypes.c_int),
        ("out_features", ctypes.c_int),
        ("type", ctypes.c_int),
        ("out_type", ctypes.c_int),
        ("sparse", ctypes.c_bool),
        ("x", ctypes.c_void_p),
        ("x_pitch", ctypes.c_int64),
        ("weight", ctypes.c_void_p),
        ("out", ctypes.c_void_p),
        ("out_pitch", ctypes.c_int64),
        ("scale", ctypes.c_void_p),
        ("bias", ctypes.c_void_p),
        ("bias_type", ctypes.c_int),
        ("residual", ctypes.c_void_p),
        ("residual_pitch", ctypes.c_int64),
        ("residual_scale", ctypes.c_float),
        ("out_scale", ctypes.c_float),
        ("activation", ctypes.c_int),
        ("convolution", ctypes.c_void_p),
        ("stream", ctypes.c_void_p),
    ]


class Convolution(ctypes.Structure):
    """struct Convolution of csrc/gemm.h."""

    _fields_ = [
        (name, ctypes.c_int)
        for name in (
            "batch height width channels out_height out_width kernel_height kernel_width "
            "stride_height stride_width padding_height padding_width dilation_height "
            "dilation_width groups"
        ).split()
    ]


class Emulator:
    """pack.cu and the sm_80 kernel, compiled for the CPU."""

    def __init__(self, library: Path) -> None:
        self._library = ctypes.CDLL(str(library))
        for name in ("emulated_gemm", "emulated_pack", "emulated_unpack"):
            getattr(self._library, name).restype = ctypes.c_char_p

    def gemm(
        self,
        readable: tuple[Tensor, Tensor],
        copies_are_late: bool = False,
        last_warp_first: bool = False,
        capability: int = 89,
        shared_limit: int = 163 * 1024,
        **fields: int | float | None,
    ) -> str | None:
        """What sm80_gemm returned on one multiprocessor; None is success.

        `readable` are the storages that cp.async may read; how the emulator orders copies and warps
        is said in emulator/cuda.h.
        """
        ends = [at for t in readable for at in (t.data_ptr(), t.data_ptr() + t.nbytes)]
        ranges = (ctypes.c_void_p * 4)(*ends)
        self._library.emulator_set(
            copies_are_late, last_warp_first, capability, shared_limit, ranges
        )
        wrong = self._library.emulated_gemm(ctypes.byref(Gemm(**fields)), 1)
        return wrong and wrong.decode()

    @property
    def bank_conflicts(self) -> int:
        """Of the last product's ldmatrix."""
        return self._library.emulator_bank_conflicts()

    @property
    def threads(self) -> int:
        """In a block of the last launch."""
        return self._library.emulator_threads()

    def pack(self, weight: Tensor, sparse: bool) -> tuple[Tensor, int]:
        """The packed weight, poisoned before, and the index of its first bad group."""
        rows, columns = weight.shape
        packed = torch.full(
            packed_shape(rows, columns, weight.dtype, sparse), PACKED_POISON, dtype=torch.uint8
        )
        bad = ctypes.c_int64(-1)
        wrong = self._library.emulated_pack(
            ctypes.c_void_p(weight.data_ptr()),
            ctypes.c_int64(weight.stride(0) * weight.itemsize),
            rows,
            columns,
            TYPES[weight.dtype],
            sparse,
            ctypes.c_void_p(packed.data_ptr()),
            ctypes.byref(bad),
        )
        assert wrong is None, wrong.decode()
        return packed, bad.value

    def unpack(self, packed: Tensor, out: Tensor, sparse: bool) -> None:
        """Writes the weight to `out`, whose rows may lie apart."""
        wrong = self._library.emulated_unpack(
            ctypes.c_void_p(packed.data_ptr()),
            *out.shape,
            TYPES[out.dtype],
            sparse,
            ctypes.c_void_p(out.data_ptr()),
            ctypes.c_int64(out.stride(0) * out.itemsize),
        )
        assert wrong is None, wrong.decode()


@pytest.fixture(scope="session")
def compiler() -> str:
    """nvcc's path."""
    try:
        return build.compiler()
    except build.BuildError as error:
        pytest.skip(str(error))


def compile_for_cpu(compiler: str, out: Path, sources: list[Path], *flags: str) -> Path:
    """Compiles and links sources (where `out` is an .o, one source, unlinked); returns `out`."""
    host = "-U_FORTIFY_SOURCE,-w,-fPIC"  # threads are coroutines by longjmp, which fortify forbids
    # nvcc finds CUDA's headers and hands a .cpp to the host's compiler; -Bsymbolic: the emulator's
    # cudaGetDevice, not that of the runtime which torch has loaded
    kind = ["-c"] if out.suffix == ".o" else ["-shared", "-cudart", "none", "-Xlinker", "-Bsymbolic"]
    line = [compiler, "-std=c++17", "-Xcompiler", host, *kind, *flags, *map(str, sources)]
    done = subprocess.run([*line, "-o", str(out)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return out


class Hopper:
    """The sm_90 kernel, compiled for the CPU: a library for each type and form, made when asked for."""

    def __init__(self, compiler: str, folder: Path, sources: Path, tiles: int = 127) -> None:
        """`tiles`: bit i says that config.h's tile i is compiled."""
        self._compiler, self._folder, self._sources, self._tiles = compiler, folder, sources, tiles
        self._libraries: dict[tuple[torch.dtype, bool], ctypes.CDLL] = {}

    def gemm(
        self,
        dtype: torch.dtype,
        plan: Plan,
        readable: Tensor,
        multiprocessors: int = 1,
        copies_are_late: bool = False,
        last_warp_first: bool = False,
        **fields: int | float | None,
    ) -> str | None:
        """What the kernel returned; None is success. `readable` is the packed weight."""
        library = self._library(dtype, bool(fields["sparse"]))
        ends = readable.data_ptr(), readable.data_ptr() + readable.nbytes
        wrong = library.emulated_sm90(
            ctypes.byref(Gemm(**fields)),
            ctypes.c_int64(plan.number()),
            multiprocessors,
            copies_are_late,
            last_warp_first,
            (ctypes.c_void_p * 4)(*ends, *ends),
        )
        self.bank_conflicts: int = library.emulator_bank_conflicts()
        return wrong and wrong.decode()

    @staticmethod
    def convolution(*sizes: int) -> Convolution:
        """In the order of gemm.h's struct."""
        return Convolution(*sizes)

    def _library(self, dtype: torch.dtype, sparse: bool) -> ctypes.CDLL:
        if (dtype, sparse) not in self._libraries:
            name = {0: "f16", 1: "bf16", 2: "s8", 3: "e4m3"}[TYPES[dtype]]
            flags = [f"-DEMULATED_TYPE={name}", f"-DEMULATED_SPARSE={str(sparse).lower()}"]
            flags += [f"-DEMULATED_TILES={self._tiles}", "-O1", f"-I{self._sources}"]
            path = self._folder / f"{name}_{'sparse' if sparse else 'dense'}.so"
            parts = [EMULATOR / "sm90_emulated.cpp", *sorted(self._core().glob("*.o"))]
            library = ctypes.CDLL(str(compile_for_cpu(self._compiler, path, parts, *flags)))
            library.emulated_sm90.restype = ctypes.c_char_p
            self._libraries[dtype, sparse] = library
        return self._libraries[dtype, sparse]

    def _core(self) -> Path:
        """The folder of the emulator's own objects, which see no kernel."""
        folder = self._folder.parent / "core"
        if not folder.exists():
            folder.mkdir()
            with ThreadPoolExecutor(os.cpu_count()) as pool:
                list(pool.map(lambda part: self._compile_part(folder, part), HOPPER_PARTS))
        return folder

    def _compile_part(self, folder: Path, part: str) -> None:
        flags = "-O3", f"-I{build.SOURCES}"  # gemm.h's types
        compile_for_cpu(self._compiler, folder / f"{part}.o", [EMULATOR / f"{part}.cpp"], *flags)


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
    folder = tmp_path_factory.mktemp("hopper") / "kernel"
    folder.mkdir()
    return Hopper(compiler, folder, sources)
