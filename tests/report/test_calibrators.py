"""The table of calibrators: from records, against the same seed before INT8."""

import pytest

from workbench.record import RecordError
from workbench.report import calibrators, markdown


def test_calibrators_are_rows_and_changes_are_to_the_unquantized(put, results) -> None:
    for seed, before in ((0, 91.0), (1, 92.0)):
        put("resnet20_cifar", "dense/dense", {"train/top1": before}, seed)
        rows = [
            {"calibrator": "max", "top1": before - 1.0},
            {"calibrator": "mse", "top1": before - 0.25 * seed},
        ]
        sparsity = {"calibrators": rows}
        put("resnet20_cifar", "dense/quantize", {"train/top1": 1.0}, seed, sparsity=sparsity)
    made = calibrators("resnet20_cifar", "smoke", results)
    lines = [line for line in markdown(made).splitlines() if line.startswith("| ")]
    assert lines[0] == "| Calibrator | dense top-1 % ↑ |"
    assert lines[2:] == [
        "| not quantized | 91.5 [91.0, 92.0] |",
        "| max | 90.5 [90.0, 91.0] (−1.00) |",
        "| mse | 91.4 [91.0, 91.8] (−0.12) |",
    ]
    assert len(made.numbers) == 6


def test_records_without_a_comparison_are_told(put, results) -> None:
    put("resnet20_cifar", "dense/quantize", {"train/top1": 1.0})
    with pytest.raises(RecordError, match="no record that compares calibrators; name some in quan"):
        calibrators("resnet20_cifar", "smoke", results)
