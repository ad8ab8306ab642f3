"""The example runs as its docstring says, and its file holds what it claims."""

import subprocess
import sys

from workbench import resolve
from workbench.sparsity import load_compressed, verify_file


def test_the_example_trains_prunes_and_saves_a_2_to_4_network(tmp_path) -> None:
    out = tmp_path / "sparse.safetensors"
    given = ["--epochs", "1", "--limit", "64", "--out", str(out)]
    script = resolve.ROOT / "examples" / "prune_torchvision.py"
    done = subprocess.run(
        [sys.executable, str(script), *given], cwd=resolve.ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "first layer: 3 input channels" in done.stdout
    tensors, masks = load_compressed(out)
    assert masks.density() == 0.5
    assert len(masks) == 20  # ResNet-18: 21 conv and linear layers, all but the first
    assert masks.digest()[:12] in done.stdout and masks.digest() in verify_file(out)
    assert "conv1.weight" in tensors and "conv1.weight" not in masks
