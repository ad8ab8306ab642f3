"""The kernels compiled for the CPU against the emulator, and called through ctypes."""

import ctypes
import os
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from torch import Tensor

from sparse24 import build
from sparse24.layout import packed_shape
from sparse24.seam import TYPES, Plan
from tests.kernels.call import Call, Gemm

EMULATOR = Path(__file__).parent / "emulator"
HOPPER_PARTS = ("sm90_state", "sm90_wgmma", "sm90_copies", "sm90_tensor_map", "threads")
PACKED_POISON = 0x5A


class Emulator:
    """pack.cu and the sm_80 kernel, compiled for the CPU."""

    def __init__(self, library: Path) -> None:
        self._library = ctypes.CDLL(str(library))
        for name in ("emulated_gemm", "emulated_pack", "emulated_unpack"):
            getattr(self._library, name).restype = ctypes.c_char_p

    def gemm(
        self,
        call: Call,
        copies_are_late: bool = False,
        last_warp_first: bool = False,
        capability: int = 89,
        shared_limit: int = 163 * 1024,
    ) -> str | None:
        """What sm80_gemm returned on one multiprocessor; None is success.

        How the emulator orders copies and warps is said in emulator/threads.h.
        """
        readable = (call.x.untyped_storage(), call.packed.untyped_storage())  # by cp.async
        ends = [at for t in readable for at in (t.data_ptr(), t.data_ptr() + t.nbytes())]
        ranges = (ctypes.c_void_p * 4)(*ends)
        self._library.emulator_set(
            copies_are_late, last_warp_first, capability, shared_limit, ranges
        )
        wrong = self._library.emulated_gemm(ctypes.byref(Gemm(**call.fields)), 1)
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


def compile_for_cpu(compiler: str, out: Path, sources: list[Path], *flags: str) -> Path:
    """Compiles and links sources (where `out` is an .o, one source, unlinked); returns `out`."""
    host = "-U_FORTIFY_SOURCE,-w,-fPIC"  # threads are coroutines by longjmp, which fortify forbids
    # nvcc finds CUDA's headers and hands a .cpp to the host's compiler; -Bsymbolic: the emulator's
    # cudaGetDevice, not that of the runtime which torch has loaded
    kind = (
        ["-c"] if out.suffix == ".o" else ["-shared", "-cudart", "none", "-Xlinker", "-Bsymbolic"]
    )
    line = [compiler, "-std=c++17", "-Xcompiler", host, *kind, *flags, *map(str, sources)]
    done = subprocess.run([*line, "-o", str(out)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return out


class Hopper:
    """The sm_90 kernel, compiled for the CPU: a library for each type and form, when asked for."""

    def __init__(
        self, compiler: str, folder: Path, sources: Path, core: list[Path], tiles: int = 511
    ) -> None:
        """`core`: of `hopper_core`; `tiles`: bit i says that config.h's tile i is compiled."""
        self.compiler, self.sources, self.core = compiler, sources, core
        self._folder, self._tiles = folder, tiles
        self._libraries: dict[tuple[torch.dtype, bool], ctypes.CDLL] = {}

    def gemm(
        self,
        call: Call,
        tile: int,
        cluster: tuple[int, int] = (1, 1),
        raster: int = 1,
        multiprocessors: int = 1,
        copies_are_late: bool = False,
        last_warp_first: bool = False,
    ) -> str | None:
        """What the kernel returned; None is success."""
        library = self._library(call.x.dtype, bool(call.fields["sparse"]))
        # what may be read without a tensor map
        ends = call.packed.data_ptr(), call.packed.data_ptr() + call.packed.nbytes
        wrong = library.emulated_sm90(
            ctypes.byref(Gemm(**call.fields)),
            ctypes.c_int64(Plan(tile, *cluster, raster).number()),
            multiprocessors,
            copies_are_late,
            last_warp_first,
            (ctypes.c_void_p * 4)(*ends, *ends),
        )
        self.bank_conflicts: int = library.emulator_bank_conflicts()
        return wrong and wrong.decode()

    def _library(self, dtype: torch.dtype, sparse: bool) -> ctypes.CDLL:
        if (dtype, sparse) not in self._libraries:
            name = {0: "f16", 1: "bf16", 2: "s8", 3: "e4m3"}[TYPES[dtype]]
            flags = [f"-DEMULATED_TYPE={name}", f"-DEMULATED_SPARSE={str(sparse).lower()}"]
            flags += [f"-DEMULATED_TILES={self._tiles}", "-O1", f"-I{self.sources}"]
            path = self._folder / f"{name}_{'sparse' if sparse else 'dense'}.so"
            parts = [EMULATOR / "sm90_emulated.cpp", *self.core]
            library = ctypes.CDLL(str(compile_for_cpu(self.compiler, path, parts, *flags)))
            library.emulated_sm90.restype = ctypes.c_char_p
            self._libraries[dtype, sparse] = library
        return self._libraries[dtype, sparse]


def hopper_core(compiler: str, folder: Path) -> list[Path]:
    """The objects of the emulator itself, which see no kernel."""

    def compile_part(part: str) -> Path:
        flags = "-O3", f"-I{build.SOURCES}"  # gemm.h's types
        return compile_for_cpu(compiler, folder / f"{part}.o", [EMULATOR / f"{part}.cpp"], *flags)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(compile_part, HOPPER_PARTS))
