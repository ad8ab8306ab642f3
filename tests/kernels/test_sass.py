"""What the compiler made of every .cu: no spills, no serialized wgmma, the instructions meant."""

import os
import re
import shutil
import subprocess
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import pytest

from sparse24 import build

SOURCES = [path.stem for path in sorted(build.SOURCES.glob("*.cu"))]
# sources in which a kernel multiplies, one template argument saying sparse or dense
GEMMS = [name for name in SOURCES if re.fullmatch(r"sm\d+_(?!gemm).*", name)]
MMA = re.compile(r"\b[HIQ]G?MMA(\.SP)?[.\w]*")
# the template arguments of a kernel's shape: ...ShapeILNS_4TypeE<type>ELb<sparse>E, mangled
SHAPE = re.compile(r"ShapeILNS_4TypeE(\d)ELb([01])E")
E4M3 = "3"  # Type::e4m3 of gemm.h


@dataclass(frozen=True)
class Compiled:
    """An object file, and what nvcc and ptxas said."""

    path: Path
    said: str


@pytest.fixture(scope="session")
def compiled(compiler: str, request: pytest.FixtureRequest) -> dict[str, Compiled]:
    """Each source's object, from pytest's cache where neither it nor the compiler has changed."""
    folder = request.config.cache.mkdir(f"kernels-{build.digest(compiler)}")
    jobs = [(line, target) for line, target in build.commands(compiler, folder) if _is_cuda(line)]

    def run(job: tuple[list[str], Path]) -> Compiled:
        line, target = job
        log = target.with_suffix(".txt")
        if not log.exists():
            done = subprocess.run([*line, "-Xptxas", "-v"], capture_output=True, text=True)
            assert done.returncode == 0, f"{target.stem}: {done.returncode}\n{done.stderr}"
            log.write_text(done.stdout + done.stderr)
        return Compiled(target, log.read_text())

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return {
            target.stem: done for (_, target), done in zip(jobs, pool.map(run, jobs), strict=True)
        }


def _is_cuda(line: list[str]) -> bool:
    return any(word.endswith(".cu") for word in line)


def disassembler() -> str | None:
    """The path of cuobjdump with nvdisasm beside it: the toolkit's, or of NVIDIA's two wheels."""
    folders = [os.environ.get("CUDA_HOME", "/usr/local/cuda") + "/bin"]
    nvidia = find_spec("nvidia")
    if nvidia is not None:
        folders += [f"{place}/cu13/bin" for place in nvidia.submodule_search_locations or ()]
    for path in (None, *folders):
        found = shutil.which("cuobjdump", path=path)
        if found and shutil.which("nvdisasm", path=str(Path(found).parent)):
            return found
    return None


@pytest.fixture(scope="session")
def functions(compiled: dict[str, Compiled]) -> dict[str, dict[tuple[str, str], str]]:
    """The machine code of each source's kernels, by architecture and mangled name."""
    program = disassembler()
    if program is None:
        pytest.skip(
            "reading machine code needs cuobjdump and nvdisasm: the CUDA toolkit's, or "
            "`pip install nvidia-cuda-cuobjdump nvidia-cuda-nvdisasm`"
        )
    path = f"{Path(program).parent}{os.pathsep}{os.environ['PATH']}"
    found: dict[str, dict[tuple[str, str], str]] = defaultdict(dict)
    for name, made in compiled.items():
        text = subprocess.run(
            [program, "-sass", str(made.path)],
            capture_output=True,
            text=True,
            check=True,
            env=os.environ | {"PATH": path},
        ).stdout
        for architecture, code in re.findall(
            r"^arch = (\w+)$(.*?)(?=^arch = |\Z)", text, re.DOTALL | re.MULTILINE
        ):
            parts = re.split(r"^\s*Function : (\S+)$", code, flags=re.MULTILINE)
            for function, body in zip(parts[1::2], parts[2::2], strict=True):
                found[name][architecture, function] = body
    return found


def is_trap(architecture: str, function: str, body: str) -> bool:
    """Whether a kernel is one that the host never launches: sm_80's e4m3 (sm80_has)."""
    shape = SHAPE.search(function)
    is_e4m3 = shape is not None and shape[1] == E4M3 and "sm80_gemm_kernel" in function
    return is_e4m3 and architecture != "sm_89" and "BPT.TRAP" in body and not MMA.search(body)


@pytest.mark.parametrize("source", SOURCES)
def test_the_compiler_spills_nothing_and_warns_of_nothing(compiled, source) -> None:
    said = compiled[source].said
    frames = re.findall(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes", said)
    assert set(frames) <= {("0", "0", "0")}
    assert source == "sm80_gemm" or frames  # that file has host code alone
    assert re.findall(r"^.*\bwarning\b.*$|^.*\(C7\d+\).*$", said, re.MULTILINE) == []


@pytest.mark.parametrize("source", SOURCES)
def test_no_kernel_touches_local_memory(functions, source) -> None:
    wrong = [key for key, body in functions[source].items() if re.search(r"\b(LDL|STL)\b", body)]
    assert wrong == []


@pytest.mark.parametrize("source", GEMMS)
def test_sparse_kernels_multiply_sparse_and_dense_ones_dense(functions, source) -> None:
    assert functions[source]
    for (architecture, function), body in functions[source].items():
        if is_trap(architecture, function, body):
            continue
        is_sparse = SHAPE.search(function)[2] == "1"
        assert {bool(found) for found in MMA.findall(body)} == {is_sparse}, (architecture, function)


@pytest.mark.parametrize("source", [name for name in GEMMS if name.startswith("sm90")])
def test_hopper_kernels_use_its_own_matrix_instructions(functions, source) -> None:
    for (_, function), body in functions[source].items():
        names = {found[0] for found in re.finditer(MMA, body)}
        assert names and all("GMMA" in name for name in names), function


def test_ampere_kernels_are_built_for_three_architectures(functions) -> None:
    for name in GEMMS:
        if name.startswith("sm80"):
            built = {architecture for architecture, _ in functions[name]}
            assert built == {"sm_80", "sm_89", "sm_90a"}, name


def test_packing_moves_sixteen_bytes_at_a_time(functions) -> None:
    for key, body in functions["pack"].items():
        assert re.search(r"\bLDG\.E\.128\b", body), key
        assert re.search(r"\bSTG\.E\.128\b", body), key
