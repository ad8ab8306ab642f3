"""The GEMM table from measurements: what counts as dense, speedups, the talk's numbers."""

import json
from pathlib import Path

import pytest

from workbench.record import RecordError
from workbench.report import bench_table
from workbench.report.gemm import COLUMNS, gemm_table


def row(m: int, n: int, k: int, dtype: str, **times: float | str) -> dict:
    found = {
        name.replace("_", " "): {"median_us": t} if isinstance(t, float) else {"reason": t}
        for name, t in times.items()
    }
    return {"m": m, "n": n, "k": k, "dtype": dtype, "found": found}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    facts = {"device": "Card", "torch": "2.11"}
    rows = [
        row(1024, 8192, 1024, "float16", library=30.0, sparse24_dense_mode=25.0, cusparselt=24.0,
            sparse24=20.0, sparse24_untuned=21.0),
        row(512, 512, 512, "int8", library=8.0, cusparselt="no such size", sparse24=10.0),
    ]  # fmt: skip
    folder = tmp_path / "lite" / "measurements"
    folder.mkdir(parents=True)
    told = {"method": "graphs", "facts": facts, "rows": rows}
    (folder / "gemm.json").write_text(json.dumps(told))
    ceiling = [{"dtype": "float16", "sparse": 1000}, {"dtype": "float16", "sparse": 1718}]
    told = {"facts": facts, "rows": ceiling}
    (folder / "wgmma_ceiling.json").write_text(json.dumps(told))
    return tmp_path


def test_the_table_has_the_columns_and_compares_with_the_best_dense(root) -> None:
    frame = gemm_table(root / "lite" / "measurements").numbers
    assert tuple(frame.columns) == COLUMNS
    first = frame.iloc[0]
    assert (first.dense_us, first.dense_backend) == (25.0, "sparse24 dense mode")
    assert first.speedup_vs_dense == 25 / 20
    assert first.speedup_vs_cusparselt == 24 / 20
    # 2 * 1024 * 8192 * 1024 = 17.18 GFLOP in 20 us are 859 TFLOP/s, half of the higher ceiling
    assert first.share_of_ceiling == pytest.approx(0.5, abs=1e-3)
    assert first.talk == 1.44  # the talk's table of GEMMs
    assert (first.library_us, first.library) == (30.0, "library")
    second = frame.iloc[1]
    assert second.speedup_vs_dense == 0.8
    assert frame.isna().iloc[1].cusparselt_us


def test_csv_markdown_and_plot_are_written_and_a_missing_time_is_a_dash(root) -> None:
    bench_table("gemm", "lite", root)
    folder = root / "lite" / "tables"
    assert folder.joinpath("gemm.csv").read_text().splitlines()[0] == ",".join(COLUMNS)
    lines = folder.joinpath("gemm.md").read_text().splitlines()
    assert any(
        line.startswith("| 512 x 512 x 512 | int8 | 8.0 library | – | 10.0 |") for line in lines
    )
    assert "xmlns" in folder.joinpath("gemm.svg").read_text()


def test_without_measurements_the_table_says_what_to_run(tmp_path) -> None:
    with pytest.raises(RecordError, match="run `workbench bench gemm` on a GPU"):
        gemm_table(tmp_path)


def test_throughput_stands_beside_the_talks_multiples_of_fp32(tmp_path) -> None:
    rows = [
        {"input_operands": "FP32", "accumulator": "FP32", "dense_tops": 50.0, "sparse_tops": None},
        {"input_operands": "INT8", "accumulator": "INT32", "dense_tops": 900.0, "sparse_tops": 2e3},
    ]
    folder = tmp_path / "lite" / "measurements"
    folder.mkdir(parents=True)
    told = {"what": "products", "facts": {"device": "Card"}, "rows": rows}
    (folder / "throughput.json").write_text(json.dumps(told))
    bench_table("throughput", "lite", tmp_path)
    lines = (tmp_path / "lite" / "tables" / "throughput.md").read_text().splitlines()
    # 900 / 50 and 2000 / 50; 32X and 64X are the talk's
    assert "| INT8 | INT32 | 900 | 18.0 | 2000 | 40.0 | 32X | 64X |" in lines
    assert "| FP32 | FP32 | 50 | 1.0 | – | – | – | – |" in lines
