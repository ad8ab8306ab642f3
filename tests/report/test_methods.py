"""Studies of methods: their table, what the slides claim of them, and their curves."""

import json
import math
import re

import pandas as pd
import pytest

from workbench import dag, failure
from workbench.report import page, table
from workbench.report.methods import methods_table
from workbench.report.slide_claims import outcome
from workbench.spec import Claim

NETWORKS = ["bert_base_pretraining", "bert_base_half_hidden", "bert_base_half_weights"]
LOSSES = {
    ("bert_base_pretraining", "dense/dense"): 5.0,
    ("bert_base_pretraining", "dense_again/retrain"): 4.0,
    ("bert_base_pretraining", "2to4/retrain"): 4.05,
    ("bert_base_pretraining", "unstructured50/retrain"): 4.04,
    ("bert_base_pretraining", "unstructured75/retrain"): 4.6,
    ("bert_base_pretraining", "block32/retrain"): 4.5,
    ("bert_base_half_hidden", "dense/dense"): 5.6,
    ("bert_base_half_hidden", "dense_again/retrain"): 4.8,
    ("bert_base_half_weights", "dense/dense"): 5.3,
}
SUMMARY = {"weights": 1000, "dense_bytes": 3_000_000}


@pytest.fixture
def filled(put, results):
    for (network, stage), loss in LOSSES.items():
        for seed, shift in enumerate((0.0, 0.1)):  # so that the margin is 0.1
            put(
                network,
                stage,
                {"pretrain/masked_loss": loss + shift},
                seed,
                higher=False,
                sparsity={"summary": SUMMARY},
            )
    for seed in (0, 1):
        stored = {"bytes": 2_000_000, "metadata_bytes": 125_000, "values_bytes": 1_875_000}
        kept = {"kept_magnitude": 0.75 + 0.1 * seed, "storage": stored, "summary": SUMMARY}
        scores = {"pretrain/masked_loss": 7.0}
        put("bert_base_pretraining", "2to4/prune", scores, seed, higher=False, sparsity=kept)
    return results


def shown(made, method):
    row = next(row for row in made.rows if row[0].value == method)
    return dict(zip(made.header, row, strict=True))


def test_the_csv_has_the_columns_that_were_agreed(filled):
    table("alternatives", "smoke", NETWORKS, [0, 1], filled)
    made = pd.read_csv(filled / "smoke" / "tables" / "alternatives.csv")
    expected = ["method", "kept_magnitude", "size_mb", "val_loss", "val_loss_range", "seeds"]
    assert list(made.columns) == expected
    row = made.set_index("method").loc["2to4"]
    # kept (0.75 + 0.85) / 2, 2,000,000 bytes, (4.05 + 4.15) / 2
    assert row.tolist() == pytest.approx([0.8, 2.0, 4.10, 0.1, 2])
    dense = made.set_index("method").loc["dense"]
    assert dense.tolist() == pytest.approx([1.0, 3.0, 5.05, 0.1, 2])


def test_a_method_is_tested_against_the_dense_ones(filled):
    made = methods_table("alternatives", "smoke", NETWORKS, [0, 1], filled)
    row = shown(made, "2:4")
    # +0.95 over dense, -0.05 under its second training, the same for both seeds; margin 0.1
    assert row["Against dense"].value == "better by 0.950"
    assert row["Against dense again"].value == "equivalent"
    assert row["masked loss ↓"].spread == "[4.050, 4.150]"
    assert row["Of it metadata"].value == "0.1"


def test_minutes_are_of_a_methods_own_stages(filled):
    made = methods_table("alternatives", "smoke", NETWORKS, [0, 1], filled)
    assert shown(made, "Dense")["Minutes"].value == "1.5"  # every record took 90 s
    assert shown(made, "2:4")["Minutes"].value == "3.0"  # and this was pruned before


def test_the_slides_claims_hold_or_not(filled):
    claims = methods_table("alternatives", "smoke", NETWORKS, [0, 1], filled).then
    outcomes = {row[1].value: row[4].value for row in claims.rows}
    assert outcomes["Dense better than Half the hidden size"] == "holds"  # 5.6 - 5.0
    assert outcomes["2:4 as good as Dense again"] == "holds"  # 0.05 within 0.1
    assert outcomes["Dense again better than Unstructured 75 %"] == "holds"
    assert outcomes["2:4 better than Half the weights again"] == "no record"
    assert claims.notes[0][1] == "7 claims. Holds: 6, no record: 1."


@pytest.mark.parametrize(
    ("relation", "differences", "expected"),
    [
        ("better", [0.5, 0.5], "holds"),
        ("better", [0.05, 0.05], "holds"),  # by less than the margin, but steadily
        ("better", [-0.05, 0.0], "undecided"),
        ("better", [-0.5, -0.5], "does not hold"),
        ("better", [0.0, 0.0], "does not hold"),
        ("same", [0.05, 0.05], "holds"),
        ("same", [0.5, 0.5], "does not hold"),
        ("same", [0.0, 0.3], "undecided"),
        ("same", [0.0], "one seed"),
    ],
)
def test_a_claim_follows_from_the_interval(relation, differences, expected):
    from workbench.report import equivalence

    claim = Claim(slide="", method="a", relation=relation, than="b")
    assert outcome(claim, equivalence.test(pd.Series(differences), 0.1)) == expected


def test_a_missing_method_is_a_dash_with_its_reason(filled):
    cell = dag.study_cells("alternatives", "smoke", ["bert_base_half_weights"], [0])[1]
    failure.remember(filled / cell.folder, RuntimeError("loss is nan at step 12"))
    made = methods_table("alternatives", "smoke", NETWORKS, [0, 1], filled)
    row = shown(made, "Half the weights again")
    assert (row["masked loss ↓"].value, row["Seeds"].value) == ("–", "0")
    note = next(text for mark, text in made.notes if mark == row["masked loss ↓"].mark)
    assert note.startswith("Half the weights again: no record of any stage (seed 0, 1) under")
    assert "dense_again/retrain (seed 0) failed: RuntimeError: loss is nan at step 12" in note
    failure.forget(filled / cell.folder)
    assert failure.reason(filled / cell.folder) == ""


def test_without_records_every_cell_is_a_dash_and_nothing_is_claimed(results):
    made = methods_table("two_phases", "lite", ["minilm_l6"], [0, 1, 2], results)
    assert all(math.isnan(value) for value in made.numbers.score)
    assert {row[4].value for row in made.then.rows} == {"no record"}


def test_networks_that_a_study_is_not_about_are_refused(results):
    with pytest.raises(dag.ConfigError, match="its own: minilm_l6"):
        methods_table("two_phases", "lite", ["resnet50"], [0], results)


def test_the_page_draws_held_out_scores_behind_the_dense_training(filled):
    for stage, start in (("dense/dense", 6.0), ("2to4/retrain", 5.5)):
        for seed in (0, 1):
            folder = filled / "smoke" / "bert_base_pretraining" / f"seed{seed}" / stage
            rows = [
                {"phase": "pretrain", "step": s, "lr": 0.1, "loss": 1.0, "held_out": start - s / 50}
                for s in (9, 19, 29, 39)
            ]
            (folder / "curve.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    page("smoke", ["alternatives"], NETWORKS, root=filled)
    text = (filled / "smoke" / "report.html").read_text()
    assert "masked loss ↓ on held-out data" in text
    figure = text[text.index('aria-label="masked loss') :].partition("</svg>")[0]
    for label in ("Dense", "2:4", "step"):
        assert f">{label}</text>" in figure
    ticks = [int(tick) for tick in re.findall(r">(\d+)</text>", figure)]
    assert 70 <= max(ticks) <= 80  # 40 steps dense and 40 again
