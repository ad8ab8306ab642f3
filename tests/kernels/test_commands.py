"""The commands `python -m sparse24...`: none warns of itself, and errors are one line."""

import os
import re
import subprocess
import sys
from pathlib import Path

import sparse24

PACKAGE = Path(sparse24.__file__).parent
COMMANDS = sorted(
    path.stem for path in PACKAGE.glob("[!_]*.py") if '__name__ == "__main__"' in path.read_text()
)


def test_what_runs_as_a_command_is_not_loaded_with_the_package() -> None:
    # python -m would warn that it is in sys.modules already, and run a second copy of it
    assert {"check", "gemms", "convs"} <= set(COMMANDS)
    asked = "import sparse24, sys; print(*(name for name in sys.modules))"
    done = subprocess.run([sys.executable, "-c", asked], capture_output=True, text=True, check=True)
    loaded = set(re.findall(r"sparse24\.(\w+)", done.stdout))
    assert "build" in loaded  # so the list is that of the package
    assert not loaded & set(COMMANDS)


def test_without_a_compiler_the_command_says_what_to_install_and_nothing_else(tmp_path) -> None:
    environment = os.environ | {
        "PATH": str(tmp_path),
        "CUDA_HOME": str(tmp_path),
        "SPARSE24_CACHE": str(tmp_path),
    }
    line = [sys.executable, "-W", "error", "-m", "sparse24"]
    done = subprocess.run(line, env=environment, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith("sparse24: compiling the kernels needs nvcc")
    assert done.stderr.count("\n") == 1
    assert not done.stdout
