"""The table of a study: directions, shares, marks, footnotes and the talk's numbers."""

import math

import pandas as pd
import pytest

from workbench import dag, resolve
from workbench.report import table, talk
from workbench.report.render import markdown
from workbench.report.tables import study_table

NETWORKS = ["resnet50", "transformer_xl"]


def row_of(made, network):
    return made.numbers.set_index("network").loc[network]


def texts(made):
    return " ".join(text for _, text in made.notes)


def test_differences_are_positive_where_a_lower_is_better_metric_fell(put, results):
    put("transformer_xl", "dense/dense", {"train/bits_per_character": 2.0}, higher=False)
    put("transformer_xl", "2to4/retrain", {"train/bits_per_character": 1.5}, higher=False)
    put("transformer_xl", "2to4/quantize", {"train/bits_per_character": 2.25}, higher=False)
    row = row_of(
        study_table("accuracy", "smoke", ["transformer_xl"], [0], results), "transformer_xl"
    )
    assert row.sparse_fp16_difference == 0.5  # 2.0 - 1.5: half a bit fewer
    assert row.sparse_int8_difference == -0.25  # 2.0 - 2.25: a quarter of a bit more


def test_recovered_share_is_measured_where_the_network_was_pruned(put, results):
    put("bert_large", "dense/dense", {"finetune/f1": 80.0, "pretrain/masked_loss": 2.0})
    put("bert_large", "2to4/prune", {"pretrain/masked_loss": 6.0}, higher=False)
    put("bert_large", "2to4/retrain", {"finetune/f1": 79.0, "pretrain/masked_loss": 3.0})
    made = study_table("accuracy", "smoke", ["bert_large"], [0], results)
    row = row_of(made, "bert_large")
    assert row.sparse_fp16_recovered == 0.75  # (3 - 6) / (2 - 6)
    assert row.pruned_difference == -4.0  # 2 - 6: four nats worse
    assert "6.000 masked loss ↓ (−4.000)" in markdown(made)


def test_nothing_lost_leaves_the_recovered_share_open(put, results):
    put("resnet50", "dense/dense", {"train/top1": 70.0})
    put("resnet50", "2to4/prune", {"train/top1": 70.0})
    put("resnet50", "2to4/retrain", {"train/top1": 71.0})
    row = row_of(study_table("accuracy", "smoke", ["resnet50"], [0], results), "resnet50")
    assert math.isnan(row.sparse_fp16_recovered)


def test_a_missing_cell_is_a_dash_with_a_footnote_that_names_the_record(put, results):
    put("resnet50", "dense/dense", {"train/top1": 70.0})
    made = study_table("accuracy", "smoke", ["resnet50"], [0], results)
    cell = made.rows[0][made.header.index("Sparse INT8")]
    assert (cell.value, cell.mark) == ("–", "¹")
    mark, text = made.notes[0]
    assert mark == "¹"
    assert "2to4/quantize" in text and "results/smoke/resnet50" in text


def test_a_network_without_any_record_still_has_a_row_with_the_talks_numbers(results):
    made = study_table("accuracy", "smoke", NETWORKS, [0], results)
    assert len(made.rows) == 2
    row = row_of(made, "resnet50")
    # experiments/talk/classification.csv: ResNet-50 76.6 76.8 0.2 76.8 0.2
    assert (row.talk_dense_fp16, row.talk_sparse_fp16, row.talk_sparse_int8) == (76.6, 76.8, 76.8)
    assert row.talk_sparse_fp16_difference == pytest.approx(0.2)


def test_a_record_of_an_older_spec_is_marked(put, results):
    put("resnet50", "dense/dense", {"train/top1": 70.0}, spec_digest="000000000000")
    made = study_table("accuracy", "smoke", ["resnet50"], [0], results)
    assert made.rows[0][0].mark == "†"
    assert made.rows[0][made.header.index("Dense")].mark == "†"
    assert any(mark == "†" and "Dense (seed 0)" in text for mark, text in made.notes)
    assert not row_of(made, "resnet50").current


def test_everything_made_from_files_that_were_made_again_is_stale(put, results):
    put("resnet50", "dense/dense", {"train/top1": 70.0}, version=", second time")
    put("resnet50", "2to4/prune", {"train/top1": 30.0})
    put("resnet50", "2to4/retrain", {"train/top1": 71.0})
    made = study_table("accuracy", "smoke", ["resnet50"], [0], results)
    marks = dict(zip(made.header, (cell.mark for cell in made.rows[0]), strict=True))
    assert (marks["Dense"], marks["Pruned"], marks["Sparse FP16"]) == ("", "†", "†")


def test_current_records_carry_no_mark(put, results):
    for stage, score in (("dense/dense", 70.0), ("2to4/prune", 30.0), ("2to4/retrain", 71.0)):
        put("resnet50", stage, {"train/top1": score})
    made = study_table("accuracy", "smoke", ["resnet50"], [0], results)
    assert row_of(made, "resnet50").current
    assert made.rows[0][0].mark == ""


@pytest.mark.parametrize(
    ("sparse", "verdict"),
    [
        # dense 70, 71, 72: margin 2. Differences -1, -1, -1: the interval is [-1, -1]
        ([69.0, 70.0, 71.0], "equivalent"),
        # differences -5, -5, -5: the interval [-5, -5] excludes zero and is not inside 2
        ([65.0, 66.0, 67.0], "worse by 5.0"),
        # differences +3, +4, +5: 4 +- 2.920 x 1 / sqrt(3) = [2.31, 5.69]
        ([73.0, 75.0, 77.0], "better by 4.0"),
        # differences +9, 0, +3: 4 +- 2.920 x 4.58 / sqrt(3) = [-3.73, 11.73]
        ([79.0, 71.0, 75.0], "+4.0 (undecided)"),
    ],
)
def test_verdict_weighs_the_interval_of_the_difference_against_the_spread_over_seeds(
    put, results, sparse, verdict
):
    for seed, (dense, ours) in enumerate(zip([70.0, 71.0, 72.0], sparse, strict=True)):
        put("resnet50", "dense/dense", {"train/top1": dense}, seed=seed)
        put("resnet50", "2to4/retrain", {"train/top1": ours}, seed=seed)
    made = study_table("accuracy", "smoke", ["resnet50"], [0, 1, 2], results)
    assert made.rows[0][made.header.index("Against dense")].value == verdict


def test_several_seeds_show_mean_and_range(put, results):
    for seed, score in enumerate([70.0, 73.0]):
        put("resnet50", "dense/dense", {"train/top1": score}, seed=seed)
    made = study_table("accuracy", "smoke", ["resnet50"], [0, 1], results)
    cell = made.rows[0][made.header.index("Dense")]
    assert (cell.value, cell.spread) == ("71.5", "[70.0, 73.0]")  # (70 + 73) / 2
    assert row_of(made, "resnet50").dense_seeds == 2


def test_one_seed_has_no_spread(put, results):
    put("resnet50", "dense/dense", {"train/top1": 70.0})
    put("resnet50", "2to4/retrain", {"train/top1": 71.0})
    made = study_table("accuracy", "smoke", ["resnet50"], [0], results)
    assert made.rows[0][made.header.index("Against dense")].value == "+1.0 (one seed)"


def test_chance_is_that_of_the_phase_of_the_metric(put, results):
    scores = {"detect/box_ap": 20.0, "backbone/chance": 12.7, "detect/chance": 0.5}
    put("fasterrcnn_rn50_fpn_1x", "dense/dense", scores)
    networks = ["fasterrcnn_rn50_fpn_1x"]
    made = study_table("accuracy", "smoke", networks, [0], results)
    assert made.numbers.chance.tolist() == [0.5]


def test_smoke_tables_are_labelled_as_plumbing_and_full_ones_are_not(results):
    smoke = study_table("accuracy", "smoke", NETWORKS, [0], results)
    full = study_table("accuracy", "full", NETWORKS, [0], results)
    assert smoke.title.endswith("scale smoke: plumbing check, not a result")
    assert full.title.endswith("scale full")


def test_mixed_commits_and_dirty_trees_are_noted(put, results):
    put("resnet50", "dense/dense", {"train/top1": 70.0}, git={"commit": "aaaa", "dirty": False})
    put("resnet50", "2to4/prune", {"train/top1": 30.0}, git={"commit": "bbbb", "dirty": True})
    noted = texts(study_table("accuracy", "smoke", ["resnet50"], [0], results))
    assert "Mixed commits: aaaa (1 record), bbbb (1 record)." in noted
    assert "1 record made from a tree that differs from its commit: resnet50." in noted


def test_records_of_an_unknown_commit_say_so(put, results):
    unknown = {"commit": "unknown", "dirty": False}
    put("resnet50", "dense/dense", {"train/top1": 70.0}, git=unknown)
    noted = texts(study_table("accuracy", "smoke", ["resnet50"], [0], results))
    assert "Commit unknown: no repository tracked the sources." in noted


def test_the_csv_of_accuracy_has_the_columns_that_were_agreed(put, results):
    scores = {"dense/dense": 70.0, "dense_again/retrain": 72.0, "2to4/retrain": 71.5}
    scores |= {"2to4/quantize": 71.0, "dense/quantize": 69.0}
    for seed in (0, 1):
        for stage, score in scores.items():
            put("resnet50", stage, {"train/top1": score + seed}, seed=seed)
    table("accuracy", "smoke", ["resnet50"], [0, 1], results)
    made = pd.read_csv(results / "smoke" / "tables" / "accuracy.csv")
    expected = "network metric higher_is_better seeds dense dense_again sparse_fp16 sparse_int8 "
    expected += "dense_int8 verdict talk_dense talk_sparse_fp16 talk_sparse_int8 dense_range "
    expected += "dense_again_range sparse_fp16_range sparse_int8_range dense_int8_range"
    assert list(made.columns) == expected.split()
    row = made.iloc[0]
    assert (row.metric, row.seeds, row.dense, row.dense_range) == ("top1", 2, 70.5, 1.0)
    # +1.5 over dense is outside the margin 1, -0.5 under the second training is inside it
    assert row.verdict == "better than dense, equivalent to dense_again"
    assert (row.talk_dense, row.talk_sparse_int8) == (76.6, 76.8)  # talk/classification.csv
    tests = pd.read_csv(results / "smoke" / "tables" / "accuracy_tests.csv")
    one = tests[(tests.column == "sparse_fp16") & (tests.against == "dense_again")].iloc[0]
    assert (one.difference, one.low, one.high, one.margin) == (-0.5, -0.5, -0.5, 1.0)


def test_what_is_trained_from_scratch_has_the_compute_of_one_dense_training(put, results):
    for stage in ("dense/dense", "dense_again/retrain", "sr_ste/retrain", "2to4/retrain"):
        put("resnet50", stage, {"train/top1": 70.0})
    tests = study_table("schedules", "smoke", ["resnet50"], [0], results).tests
    against = tests.groupby("column").against.apply(list)
    assert against["straight_through_fp16"] == ["dense"]
    assert against["after_training_fp16"] == ["dense", "dense_again"]


def test_shortened_retraining_tells_the_epochs_that_were_needed(put, results):
    for seed in (0, 1):
        for treatment, score in (("2to4_sixth", 60.0), ("2to4_third", 69.5), ("2to4", 70.0)):
            put("resnet50", f"{treatment}/retrain", {"train/top1": score + seed}, seed=seed)
        put("resnet50", "dense/dense", {"train/top1": 70.0 + seed}, seed=seed)
    made = study_table("shortened_retraining", "smoke", ["resnet50"], [0, 1], results)
    shown = dict(zip(made.header, made.rows[0], strict=True))
    assert shown["Equivalent after"].value == "1.33ep of 4ep"  # a third of smoke's 4 epochs
    assert shown["Talk epochs"].value == "15 of 90"


def test_files_hold_the_same_rows_for_people_and_for_machines(put, results):
    put("resnet50", "dense/dense", {"train/top1": 70.0})
    table("accuracy", "smoke", NETWORKS, [0], results)
    folder = results / "smoke" / "tables"
    numbers = pd.read_csv(folder / "accuracy.csv")
    assert numbers.network.tolist() == NETWORKS
    assert numbers.dense.tolist()[0] == 70.0
    assert numbers.dense.dtype.kind == "f"
    lines = (folder / "accuracy.md").read_text().splitlines()
    assert sum(line.startswith("| ") for line in lines) == 4  # header, rule, two networks


@pytest.mark.parametrize("network", resolve.names("networks"))
def test_every_talk_key_finds_its_row(network):
    key = dag.spec_of(network, "2to4", "full").talk
    if key is not None:
        assert talk.printed(key)["dense_fp16"] > 0


def test_an_unknown_talk_row_is_refused_with_the_nearest_name():
    with pytest.raises(resolve.SpecError, match="did you mean 'ResNet-50'"):
        talk.printed("classification/ResNet50")


def test_the_talks_difference_of_a_loss_is_in_the_good_direction():
    # experiments/talk/translation.csv: Levenstein Transformer 6.16 6.18, lower is better
    found = talk.printed("translation/Levenstein Transformer")
    assert found["sparse_fp16_difference"] == pytest.approx(-0.02)


def test_at_equal_compute_the_control_is_what_counts(put, results):
    for seed in (0, 1):
        put("resnet50", "dense/dense", {"train/top1": 70.0 + seed}, seed=seed)
        put("resnet50", "dense_again/retrain", {"train/top1": 80.0 + seed}, seed=seed)
        put("resnet50", "2to4/retrain", {"train/top1": 77.0 + seed}, seed=seed)
    made = study_table("accuracy", "smoke", ["resnet50"], [0, 1], results)
    # +7 over dense and -3 under the second dense schedule, both outside the range 1
    assert made.rows[0][made.header.index("Against dense")].value == "better by 7.0"
    assert made.rows[0][made.header.index("At equal compute")].value == "worse by 3.0"
