"""The claim registry: every printed number, the five that disagree, ours beside them."""

import json

import pandas as pd
import pytest

from workbench import resolve
from workbench.report import page, write_claims
from workbench.report.claims import claims
from workbench.report.methods import methods_table
from workbench.report.registry import ACCURACY, registry, rows_of


def test_exactly_five_printed_differences_disagree_with_their_numbers():
    wrong = {(p.row, p.quantity): (p.printed, p.recomputed) for p in registry() if p.disagrees}
    assert wrong == {  # from the slides' rows, as in talk/detection.csv and translation.csv
        ("FasterRCNN-RN50-FPN-3x", "difference_fp16"): ("-0.1", "+0.1"),
        ("MaskRCNN-RN50-FPN-3x", "difference_int8"): ("0.2", "−0.2"),
        ("MaskRCNN-RN101-FPN-3x", "difference_int8"): ("0.1", "−0.1"),
        ("RPN-RN50-FPN-1x", "difference_int8"): ("0.3", "−0.3"),
        ("Levenstein Transformer", "difference_fp16"): ("-0.2", "+0.02"),
    }


def test_the_flags_agree_with_those_of_the_talks_tables():
    noted = {
        (row["network"], f"difference_{kind}")
        for table in ACCURACY
        for row in rows_of(table)
        for kind in ("fp16", "int8")
        if f"{kind}=NO" in row["printed_equals_computed"]
    }
    assert noted == {(p.row, p.quantity) for p in registry() if p.disagrees}


def test_every_row_of_the_accuracy_slides_is_in_the_registry():
    rows = {(p.table, p.row) for p in registry() if p.table in ACCURACY}
    assert len(rows) == 34


def test_ours_stand_beside_the_printed(put, results):
    put("resnet50", "dense/dense", {"train/top1": 70.0})
    put("resnet50", "2to4/retrain", {"train/top1": 71.5})
    found = {
        (c.printed.row, c.printed.table, c.printed.quantity): c
        for c in claims("smoke", [0], results)
    }
    ours = found["ResNet-50", "classification", "difference_fp16"]
    assert (ours.printed.printed, ours.ours, ours.reason) == ("0.2", "+1.5 top-1 %", "")
    missing = found["ResNet-50", "classification", "sparse_int8"]
    assert (missing.ours, missing.reason) == ("–", "no record of these stages at this scale")
    assert found["networks tested", "statements", "count"].ours == "34"
    epochs = found["ResNet-50", "shortened_retraining", "fine_tuning_epochs"]
    assert epochs.ours == "0.6666668ep"  # a sixth of smoke's 4 epochs, for the talk's 15 of 90


def test_the_speedup_of_a_product_is_that_of_the_benchmark(results):
    folder = results / "smoke" / "measurements"
    folder.mkdir(parents=True)
    took = {"cublas": {"median_us": 60.0}, "sparse24": {"median_us": 40.0}}
    row = {"m": 1024, "n": 8192, "k": 1024, "dtype": "float16", "found": took}
    told = {"rows": [row], "facts": {"device": "a GPU"}, "method": "by hand"}
    (folder / "gemm.json").write_text(json.dumps(told))
    ceilings = {"rows": [{"dtype": "float16", "sparse": 1.0}], "facts": {"device": "a GPU"}}
    (folder / "wgmma_ceiling.json").write_text(json.dumps(ceilings))
    found = {c.printed.row: c for c in claims("smoke", [0], results) if c.printed.table == "gemm"}
    assert found["M=1024 N=8192 K=1024"].ours.startswith("1.50x (GEMMs")  # 60 / 40
    assert found["M=4096 N=8192 K=1024"].reason.startswith("this size is not among")
    layer = {"n": 32, "c": 1024, "k": 2048, "h": 14, "w": 14, "r": 1, "s": 1, "stride": 1}
    layer |= {"padding": 0, "groups": 1, "dtype": "float16"}
    took = {"cuDNN": {"median_us": 45.0}, "sparse24": {"median_us": 30.0}}
    rows = [layer | {"found": took}, layer | {"dtype": "int8", "found": took}]
    (folder / "conv.json").write_text(json.dumps(told | {"rows": rows}))
    found = {c.printed.row: c for c in claims("smoke", [0], results) if c.printed.table == "conv"}
    assert found["N=32 C=1024 K=2048 H=14"].ours.startswith("1.50x (Convolutions")
    assert found["N=256 C=256 K=512 H=7"].reason.startswith("this size is not among")
    made = methods_table("alternatives", "smoke", ["bert_base_pretraining"], [0], results)
    speeds = {r[0].value: r[made.header.index("Speedup of GEMMs")].value for r in made.rows}
    assert (speeds["2:4"], speeds["Unstructured 50 %"]) == ("1.50–1.50x", "–")


def test_metadata_is_that_of_the_pruned_layers(put, results):
    layers = [
        {"layer": "a", "weights": 800, "nonzero": 400, "reason": ""},
        {"layer": "b", "weights": 300, "nonzero": 300, "reason": "tied"},
    ]
    sparsity = {"layers": layers, "storage": {"metadata_bytes": 100}}
    put("resnet50", "2to4/prune", {"train/top1": 1.0}, sparsity=sparsity)
    found = {(c.printed.row, c.printed.quantity): c.ours for c in claims("smoke", [0], results)}
    assert found["2:4 in fp16", "metadata against the values"] == "12.5 %"  # 100 of 2 x 400 bytes
    assert found["2:4", "share of zeros"] == "50.0 %"


def test_the_csv_has_a_row_per_number_and_a_reason_for_each_dash(results):
    made = pd.read_csv(write_claims("smoke", results), keep_default_na=False)
    assert len(made) == len(registry())
    dashes = made[made.ours == "–"]
    assert len(dashes) and all(dashes.reason)


def test_the_page_shows_the_five_and_all(put, results):
    put("resnet50", "dense/dense", {"train/top1": 70.0})
    page("smoke", ["accuracy"], ["resnet50"], root=results)
    text = (results / "smoke" / "report.html").read_text()
    assert "5 printed differences disagree with the numbers that they are of" in text
    assert f"All {len(registry())} numbers" in text


def test_a_share_that_no_column_retrains_for_is_an_error(edit, results):
    edit(
        "studies/shortened_retraining.yaml",
        "  sixth_fp16: {treatment: 2to4_sixth, stage: retrain}\n",
        "",
    )
    with pytest.raises(resolve.SpecError, match="no column retrains for 17 %"):
        claims("smoke", [0], results)
