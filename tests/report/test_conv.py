"""The convolution table from measurements: the talk's rows, the dense, whole networks."""

import csv
import json
from pathlib import Path

import pytest

from workbench.record import RecordError
from workbench.report import bench_table
from workbench.report.conv import COLUMNS, SHAPE, conv_table
from workbench.resolve import EXPERIMENTS

CARD = "NVIDIA H100 80GB HBM3"  # 3.35 TB/s, as bench/devices.yaml has it


def shapes(group: str) -> list[dict]:
    with (EXPERIMENTS / "bench" / "conv.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["group"] == group]
    return [{name: int(row[name]) for name in (*SHAPE, "padding", "count")} for row in rows]


def row(shape: dict, dtype: str = "float16", **times: float | str) -> dict:
    found = {
        name.replace("_", " "): {"median_us": t} if isinstance(t, float) else {"reason": t}
        for name, t in times.items()
    }
    return shape | {"dtype": dtype, "found": found}


def written(tmp_path: Path, rows: list[dict]) -> Path:
    folder = tmp_path / "lite" / "measurements"
    folder.mkdir(parents=True)
    told = {"method": "graphs", "facts": {"device": CARD, "torch": "2.11"}, "rows": rows}
    (folder / "conv.json").write_text(json.dumps(told))
    ceiling = {"dtype": "float16", "sparse": 1000.0}
    told = {"facts": {"device": "Card"}, "rows": [ceiling, ceiling | {"sparse": 500.0}]}
    (folder / "wgmma_ceiling.json").write_text(json.dumps(told))
    return folder


def test_the_talks_rows_stand_beside_its_speedups_the_fifth_in_both_readings(tmp_path) -> None:
    rows = [row(shape, cuDNN=30.0, sparse24=20.0) for shape in shapes("talk")]
    rows.append(row(shapes("talk")[0], "int8", cuDNN="none", sparse24_dense_mode=9.0, sparse24=6.0))
    frame = conv_table(written(tmp_path, rows)).numbers
    assert tuple(frame.columns) == COLUMNS
    # the talk's table of convolutions, in its order; the last twice
    assert frame.talk.tolist()[:6] == [1.52, 1.77, 1.64, 1.75, 1.85, 1.85]
    assert frame.isna().talk.tolist() == [False] * 6 + [True]
    assert frame.speedup_vs_dense.tolist() == [1.5] * 7
    assert frame.dense_backend.tolist() == ["cuDNN"] * 6 + ["sparse24 dense mode"]


def test_a_roofline_is_the_work_or_the_bytes(tmp_path) -> None:
    rows = [row(shape, cuDNN=30.0, sparse24=20.0) for shape in shapes("talk")]
    made = conv_table(written(tmp_path, [*rows, row(shapes("talk")[0], "int8", sparse24=6.0)]))
    found = made.numbers.roofline_us.tolist()
    # 32 images of 14 x 14, 1024 to 2048 channels: 2 * 6272 * 1024 * 2048 operations at 1000 TFLOP/s
    # take 26.3 us; the bytes, 12.8 M + 2.4 M + 25.7 M at 3.35 TB/s, 12.2 us
    assert found[0] == pytest.approx(26.306674688)
    assert made.rows[0][9].value == "132%"  # of 20 us: the ceiling is made up
    assert found[-1] != found[-1]  # no ceiling of int8
    # of 32 images of 56 x 56, 256 to 512 channels, 1x1 of stride 2: every fourth pixel is read
    layer = next(each for each in shapes("resnet50_32") if (each["c"], each["stride"]) == (256, 2))
    made = conv_table(written(tmp_path / "strided", [row(layer, cuDNN=30.0, sparse24=20.0)]))
    pixels, weight = 32 * 28 * 28, 256 * layer["k"] * layer["r"] * layer["s"]
    assert layer["r"] == 1
    moved = 2 * (pixels * 256 + 0.5625 * weight + pixels * layer["k"])
    assert made.numbers.roofline_us[0] == pytest.approx(moved / 3.35e6)


def test_a_network_measured_whole_has_its_time_weighted_speedup(tmp_path) -> None:
    layers = shapes("resnet50_32")
    rows = [row(shape, cuDNN=10.0, sparse24=20.0) for shape in layers]
    rows[0] = row(layers[0], cuDNN=10.0, sparse24=1.0)
    assert layers[0]["count"] == 1  # the 64 to 64 1x1 of the first block alone
    assert sum(layer["count"] for layer in layers) == 52  # 53 convolutions but the stem
    notes = [text for _, text in conv_table(written(tmp_path, rows)).notes]
    # 520 us dense; ours 51 * 20 + 1; the fastest of each 51 * 10 + 1
    wanted = "resnet50, batch 32, float16: 0.51x over all its 52 2:4 convolutions, 1.02x where "
    wanted += "each runs what is fastest; over the libraries alone 1.02x."
    assert any(text.startswith(wanted) for text in notes)
    assert not any("resnext101" in text for text in notes)


def test_csv_markdown_and_bars_are_written_and_a_missing_time_is_a_dash(tmp_path) -> None:
    grouped = next(s for s in shapes("resnext101_32x16d_256") if s["groups"] == 32)
    whole = [row(s, cuDNN=3.0, sparse24=2.0) for s in shapes("resnext101_32x16d_256")]
    whole.append(row(grouped, cuDNN=9.0, sparse24="no tile", sparse24_untuned=2.0))
    written(tmp_path, whole)
    bench_table("conv", "lite", tmp_path)
    folder = tmp_path / "lite" / "tables"
    assert folder.joinpath("conv.csv").read_text().splitlines()[0] == ",".join(COLUMNS)
    line = "| 256 | 512 → 512 | 56 x 56 | 3 x 3 | 32 | float16 | 9.0 cuDNN | – | – | – | – "
    assert line + "| 9.0 cuDNN | – |" in folder.joinpath("conv.md").read_text().splitlines()
    bars = folder.joinpath("conv.svg").read_text()
    assert "resnext101_32x16d, batch 256" in bars
    assert "resnet50, batch 256" not in bars  # nothing of it was measured
    assert "the talk's layers" not in bars


def test_without_measurements_the_table_says_what_to_run(tmp_path) -> None:
    with pytest.raises(RecordError, match="run `workbench bench conv` on a GPU"):
        conv_table(tmp_path)
