"""The page and the README block: every section, nothing from outside."""

import re

import pytest

from workbench import dag
from workbench.record import RecordError
from workbench.report import page, readme_block, table

LAYERS = [
    {
        "layer": "conv1.weight",
        "shape": [32, 3, 7, 7],
        "weights": 4704,
        "nonzero": 4704,
        "density": 1.0,
        "is_2to4": False,
        "reason": "3 input channels, not a multiple of 4",
    },
    {
        "layer": "fc.weight",
        "shape": [32, 32],
        "weights": 1024,
        "nonzero": 512,
        "density": 0.5,
        "is_2to4": True,
        "reason": "",
    },
]
SUMMARY = {"weights": 5728, "nonzero": 5216, "dense_bytes": 11456, "compressed_bytes": 11000}
INTEGERS = {
    "pruned_weights": 512,
    "pruned_not_zero": 0,
    "zeros_from_rounding": 7,
    "layers_masked": 1,
    "layers_2to4": 1,
}

ERRORS = {"conv1": 0.01, "fc": 0.123}
SENSITIVITY = [{"layer": "conv1", "loss_increase": 0.25}]


@pytest.fixture
def text(put, put_curve, results):
    put_curve(put("resnet50", "dense/dense", {"train/top1": 70.0, "train/chance": 10.0}), ["train"])
    put(
        "resnet50",
        "2to4/prune",
        {"train/top1": 30.0},
        sparsity={"summary": SUMMARY, "layers": LAYERS},
    )
    put_curve(put("resnet50", "2to4/retrain", {"train/top1": 69.0}), ["train"])
    sparsity = {"integers": INTEGERS, "errors": ERRORS, "sensitivity": SENSITIVITY}
    put("resnet50", "2to4/quantize", {"train/top1": 68.5}, sparsity=sparsity)
    page("smoke", ["accuracy"], ["resnet50", "bert_large"], root=results)
    return (results / "smoke" / "report.html").read_text()


@pytest.mark.parametrize(
    "heading",
    [
        "Accuracy of dense, sparse and INT8 networks, scale smoke: plumbing check, not a result",
        "Time and peak memory per stage",
        "ResNet-50",
        "BERT-Large",
        "Scores and training curves",
        "The recipe in three steps",
        "Density per layer",
        "Zeros in the integers",
        "Error of INT8 by layer",
    ],
)
def test_page_has_the_section(text, heading):
    assert re.search(rf"<h[123]>{re.escape(heading)}", text)


def test_the_layers_that_int8_changes_most_come_first(text):
    assert "<td>fc 12.3%, conv1 1.0%</td><td>conv1 +0.25</td>" in text


def test_page_needs_nothing_from_outside(text):
    assert "http" not in text
    assert not re.search(r"<(link|script|img|iframe)\b|@import|url\((?!#)", text)


def test_page_says_where_and_when_its_records_were_made(text):
    for fact in ("2024-05-06 07:08 UTC", "0123456789ab", "<dd>cpu</dd>"):
        assert fact in text


def test_page_says_why_layers_stayed_dense(text):
    assert "1 × 3 input channels, not a multiple of 4" in text
    assert "91.1% of 5,728 weights are not zero" in text  # 5216 / 5728


def test_page_says_which_networks_have_no_record(text):
    assert "No record at this scale yet." in text.partition('<section id="bert_large">')[2]


def test_contents_lead_to_sections(text):
    for anchor in re.findall(r'<a href="#([^"]+)"', text):
        assert f'<section id="{anchor}">' in text


def test_same_records_make_the_same_page(text, results):
    page("smoke", ["accuracy"], ["resnet50", "bert_large"], root=results)
    assert (results / "smoke" / "report.html").read_text() == text


def test_readme_block_replaces_what_stands_between_its_markers_only(put, results, tmp_path):
    put("resnet50", "dense/dense", {"train/top1": 70.0})
    table("accuracy", "smoke", ["resnet50"], [0], results)
    readme = tmp_path / "README.md"
    readme.write_text("before\n<!-- table:smoke/accuracy -->\nold\n<!-- /table -->\nafter\n")
    readme_block("smoke", "accuracy", results, readme)
    made = (results / "smoke" / "tables" / "accuracy.md").read_text()
    expected = f"before\n<!-- table:smoke/accuracy -->\n{made}<!-- /table -->\nafter\n"
    assert readme.read_text() == expected
    readme_block("smoke", "accuracy", results, readme)
    assert readme.read_text() == expected


def test_readme_without_the_markers_is_refused(results, tmp_path):
    table("accuracy", "smoke", ["resnet50"], [0], results)
    readme = tmp_path / "README.md"
    readme.write_text("no block here\n")
    with pytest.raises(dag.ConfigError, match="<!-- table:smoke/accuracy -->"):
        readme_block("smoke", "accuracy", results, readme)


def test_readme_block_of_a_table_that_does_not_exist_is_refused(results, tmp_path):
    with pytest.raises(RecordError, match="workbench table accuracy --scale smoke"):
        readme_block("smoke", "accuracy", results, tmp_path / "README.md")
