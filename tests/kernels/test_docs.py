"""The page for users runs as it is printed."""

import re
from pathlib import Path

import pytest

import sparse24

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "sparse24.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


@pytest.mark.parametrize("block", BLOCKS, ids=["product", "convolution", "model"])
def test_the_examples_run(block, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    exec(compile(block, "docs/sparse24.md", "exec"), {})  # noqa: S102
    assert capsys.readouterr().out


def test_every_name_on_the_page_is_public() -> None:
    named = set(re.findall(r"sparse24\.(\w+)\(", "\n".join(BLOCKS)))
    named |= {"Scales", "Graphs", "calibrate", "weight_gradient", "tune", "tune_conv2d", "backend"}
    assert named <= set(sparse24.__all__)


def test_the_share_of_the_bytes_is_that_of_the_layout() -> None:
    # half of the values and two bits for each of these: 1/2 + 1/16 of 16-bit values
    assert "56 % of the bytes" in PAGE
    assert sparse24.layout.block_bytes(sparse24.seam.DTYPES[0], True) / (64 * 128) == 0.5625
