"""The table and the figures of whole networks, from records that this file makes up."""

import json
from pathlib import Path

import pytest

from workbench.record import RecordError
from workbench.report import bench_table
from workbench.report.network_speed import COLUMNS, beside, claimed, network_table, talk_rows
from workbench.report.registry import Printed


def row(network: str, batch: int, candidate: str, us: float | str, **more: object) -> dict:
    found: dict = {"reason": us}
    if not isinstance(us, str):
        shares = {"2:4 products": 0.5, "attention": 0.25, "norms": 0.25}
        if not candidate.startswith("sparse24 fp16"):
            shares = {"dense products": 0.6, "attention": 0.2, "element-wise": 0.2}
        found = {"median_us": us, "low_us": us, "high_us": us, "memory_mb": 700.0,
                 "energy_mj": 512.0, "shares": shares}  # fmt: skip
    sparse = candidate in ("sparse24 fp16", "sparse24 compiled fp16", "sparse24 int8")
    return {
        "network": network, "batch": batch, "candidate": candidate, "sparse": sparse,
        "precision": candidate.rpartition(" ")[2].replace("fp8", "int8"), "unit": "sequences",
        "size": "128 tokens", "error": 0.001, "found": {candidate: found}, **more,
    }  # fmt: skip


@pytest.fixture
def root(tmp_path: Path) -> Path:
    rows = []
    for batch in (1, 32, 256):
        grown = batch**0.9
        rows += [
            row("bert_large", batch, "eager fp16", 2000.0 * grown),
            row("bert_large", batch, "compiled fp16", 1500.0 * grown),
            row("bert_large", batch, "sparse24 fp16", 1200.0 * grown,
                predicted={"speedup": 1.5, "dense_ms": 1.5 * grown, "sparse_ms": grown}),
            row("bert_large", batch, "sparse24 compiled fp16", 1300.0 * grown),
            row("bert_large", batch, "compiled fp8", 900.0 * grown),
            row("bert_large", batch, "sparse24 int8", 1000.0 * grown,
                metric={"name": "f1", "dense": 80.0, "sparse": 79.5, "difference": -0.5}),
            row("resnext101_32x16d", batch, "compiled fp16", 1800.0 * grown),
            row("resnext101_32x16d", batch, "sparse24 fp16", 1500.0 * grown),
        ]  # fmt: skip
    rows += [row("ssd_rn50", 32, "compiled fp16", "CUDA out of memory")]
    rows += [row("ssd_rn50", 32, "sparse24 fp16", 10.0)]
    told = {"method": "replays", "facts": {"device": "Card"}, "candidates": {"eager fp16": "torch"}}
    folder = tmp_path / "lite" / "measurements"
    folder.mkdir(parents=True)
    (folder / "network.json").write_text(json.dumps(told | {"rows": rows}))
    return tmp_path


def test_an_int8_network_beside_fp16_alone_has_no_speedup(root) -> None:
    path = root / "lite" / "measurements" / "network.json"
    told = json.loads(path.read_text())
    told["rows"] += [row("resnext101_32x16d", 256, "sparse24 int8", 9.0)]
    path.write_text(json.dumps(told))
    table = network_table(path.parent)
    (found,) = table.numbers[table.numbers.speedup.isna()].to_dict("records")
    assert (found["network"], found["dense_backend"]) == ("resnext101_32x16d", "compiled fp16")
    notes = [text for _, text in table.notes]
    assert (
        "No speedup: no dense network in 8 bits was measured of resnext101_32x16d at 256." in notes
    )
    gain = Printed("network_performance", "", "ResNeXt-101_32x16d INT8", "BS=1-256", "")
    assert claimed(gain, path.parent)[0] == "–"
    texts = beside(path.parent, "Card", "resnext101_32x16d", "int8")
    assert not any("nan" in text for text in texts)


def test_dense_is_the_fastest_opponent_of_the_precision_or_a_wider_one(root) -> None:
    frame = network_table(root / "lite" / "measurements").numbers
    assert tuple(frame.columns) == COLUMNS
    first = frame[(frame.network == "bert_large") & (frame.batch == 1)].set_index("precision")
    assert first.sparse_backend["fp16"] == "sparse24 fp16"
    assert first.dense_backend["fp16"] == "compiled fp16"
    assert first.speedup["fp16"] == 1500 / 1200
    assert first.dense_backend["int8"] == "compiled fp8"
    assert first.speedup["int8"] == 900 / 1000
    assert first.dense_per_s["fp16"] == pytest.approx(1e6 / 1500)
    # half of 1.2 ms by 2:4 products
    assert first["sparse_ms_2:4_products"]["fp16"] == pytest.approx(0.6)
    assert first.dense_mj["fp16"] == 512
    last = frame[(frame.network == "bert_large") & (frame.batch == 256)].set_index("precision")
    assert last.sparse_mj["fp16"] == 2  # 512 mJ for 256 sequences
    assert last.talk_per_s["int8"] == "6200 seq/s"  # of the talk's table
    assert last.talk_speedup["int8"] == "1.3X-1.5X"


def test_the_table_tells_what_is_slower_what_was_not_measured_and_how_far_predictions_were_off(
    root,
) -> None:
    bench_table("network", "lite", root)
    text = (root / "lite" / "tables" / "network.md").read_text()
    assert "0.90 (slower)" in text
    assert "| −0.5 f1 |" in text
    assert "Not measured: compiled fp16 of ssd_rn50 at 32: CUDA out of memory" in text
    # 1.5 predicted where 1.25 was measured; 1 ms where 1.2 were; 1.5 where 1.5 were
    assert "of 3 rows; median error of the speedup 20% (worst 20%)" in text
    assert "| ssd_rn50 |" not in text  # a speedup over nothing is none
    for name in ("network.svg", "network_time.svg"):
        assert "xmlns" in (root / "lite" / "tables" / name).read_text()


def test_without_measurements_the_table_says_what_to_run(tmp_path) -> None:
    with pytest.raises(RecordError, match="run `workbench bench network` on a GPU"):
        network_table(tmp_path)


def test_the_talks_claims_have_ours_beside_them(root) -> None:
    def ours(row: str, quantity: str) -> tuple[str, str]:
        printed = Printed("network_performance", "", row, quantity, "")
        return claimed(printed, root / "lite" / "measurements")

    # 256 in 1 ms x 256^0.9
    assert ours("BERT-Large INT8", "BS=256, SeqLen=128")[0].startswith("1,741 sequences/s")
    assert ours("BERT-Large INT8", "BS=1-256, SeqLen=128")[0].startswith(
        "0.90x at batch 1 to 0.90x at batch 256"
    )
    assert ours("ResNeXt-101_32x16d INT8", "BS=256") == (
        "–",
        "this network was not measured so, or not beside a dense one of the precision",
    )
    assert ours("BERT-Large", "GEMM-only") == ("–", "not of one network at a batch")


def test_the_talks_rows_are_found_by_our_names() -> None:
    assert talk_rows("bert_large", "int8") == [
        ("BS=256, SeqLen=128", "6200 seq/s"),
        ("BS=1-256, SeqLen=128", "1.3X-1.5X"),
    ]
    assert [printed for _, printed in talk_rows("resnext101_32x16d", "fp16")] == [
        "2700 images/second",
        "Up to 1.3X",
    ]
    assert talk_rows("resnet50", "fp16") == []
