"""Specs: every YAML resolves, every mistake is one line, digests change only on purpose."""

from collections.abc import Callable

import pytest

from workbench import dag, resolve
from workbench.durations import steps

CELLS = [
    (n, t, s)
    for n in resolve.names("networks")
    for t in resolve.names("treatments")
    for s in resolve.names("scales")
]


@pytest.mark.parametrize(("network", "treatment", "scale"), CELLS)
def test_every_network_resolves_at_every_scale(network: str, treatment: str, scale: str) -> None:
    resolved = resolve.resolve(network, treatment, scale)
    assert resolved.spec.phases[resolved.spec.last_phase].train.batch > 0


MISTAKES = [
    (
        "networks/_imagenet.yaml",
        "length: 90ep",
        "lenght: 90ep",
        "experiments/networks/_imagenet.yaml: phases.train.train.lenght: unknown key "
        "(did you mean 'length'?)",
    ),
    (
        "networks/_imagenet.yaml",
        "lr: 0.1,",
        "lr: fast,",
        "experiments/networks/_imagenet.yaml: phases.train.train.optimizer.lr: ",
    ),
    (
        "networks/_imagenet.yaml",
        "{name: imagenet,",
        "{name: imagnet,",
        "phases.train.data.name: unknown data set 'imagnet' (did you mean 'imagenet'?)",
    ),
    ("networks/resnet50.yaml", "build: resnet", "build: resnett", "unknown builder 'resnett' (did"),
    (
        "networks/resnet50.yaml",
        "counts:",
        "count:",
        "networks/resnet50.yaml: model.args.count: unknown argument of resnet (did you mean",
    ),
    ("networks/resnet50.yaml", "_imagenet", "_imagnet", "unknown network '_imagnet'"),
    ("networks/_imagenet.yaml", "repeat_from: train", "repeat_from: tune", "repeat_from names the"),
    ("treatments/2to4.yaml", "pattern:", "patern:", "treatments/2to4.yaml: treatment.patern: unkn"),
    (
        "networks/resnet50.yaml",
        "model: {",
        "model: {width: 0, ",
        "experiments/networks/resnet50.yaml: model.width: Input should be greater than 0 (given: 0",
    ),
    (
        "networks/resnet50.yaml",
        "model: {",
        "model: {rounding: 16, ",
        "networks/resnet50.yaml: model.rounding: unknown key; allowed: build, args, width, depth",
    ),
    (
        "networks/_imagenet.yaml",
        "image_size: 224}",
        "image_size: 224, augment: [{name: flipp}]}",
        "networks/_imagenet.yaml: phases.train.data.augment: unknown augmentation 'flipp' of "
        "imagenet (did you mean 'flip'?); known: random_resized_crop, shifted_crop, flip, "
        "color_jitter, lighting",
    ),
    (
        "networks/_imagenet.yaml",
        "image_size: 224}",
        "image_size: 224, augment: [{name: lighting, args: {deviatoin: 1.0}}]}",
        "unknown argument 'deviatoin' of lighting (did you mean 'deviation'?); allowed: deviation",
    ),
    (
        "networks/_imagenet.yaml",
        "image_size: 224}",
        "image_size: 224, augment: [{name: iou_crop}]}",
        "unknown augmentation 'iou_crop' of imagenet (did you mean 'shifted_crop'?)",
    ),
    ("networks/resnet50.yaml", "title: ResNet-50", "title: [", "networks/resnet50.yaml: not YAML"),
]


@pytest.mark.parametrize(("file", "old", "new", "message"), MISTAKES)
def test_a_mistake_is_one_line_that_names_file_and_key(
    edit: Callable, file: str, old: str, new: str, message: str
) -> None:
    edit(file, old, new)
    with pytest.raises(resolve.SpecError) as caught:
        resolve.resolve("resnet50", "2to4", "full")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_duration_without_unit_is_refused(edit: Callable) -> None:
    edit("networks/_imagenet.yaml", "length: 90ep", "length: '90'")
    with pytest.raises(resolve.SpecError, match="'90' is not a duration"):
        resolve.resolve("resnet50", "2to4", "full")


@pytest.mark.parametrize(
    ("network", "least"), [("vgg16", 32), ("inception_v3", 75), ("densenet121", 29)]
)
def test_images_smaller_than_a_network_takes_are_refused(
    edit: Callable, network: str, least: int
) -> None:
    edit("scales/smoke.yaml", "image_size: 32", f"image_size: {least - 1}, minimum_size: null")
    with pytest.raises(resolve.SpecError) as caught:
        resolve.resolve(network, "2to4", "smoke")
    assert "experiments/scales/smoke.yaml: phases.train.data.image_size: " in str(caught.value)
    assert f"takes images of at least {least} pixels (given: {least - 1})" in str(caught.value)
    edit("scales/smoke.yaml", f"image_size: {least - 1}", f"image_size: {least}")
    assert resolve.resolve(network, "2to4", "smoke")


def test_unknown_names_offer_the_nearest() -> None:
    with pytest.raises(resolve.SpecError, match="did you mean 'resnet50'"):
        resolve.resolve("resnet5O", "2to4", "full")
    with pytest.raises(resolve.SpecError, match="unknown treatment '2to3'.*did you mean '2to4'"):
        resolve.resolve("resnet50", "2to3", "full")


def test_a_network_cannot_extend_itself(edit: Callable) -> None:
    edit("networks/_imagenet.yaml", "phases:", "extends: resnet50\nphases:")
    with pytest.raises(resolve.SpecError, match="extends itself"):
        resolve.resolve("resnet50", "2to4", "full")


def test_every_value_knows_its_file() -> None:
    resolved = resolve.resolve("resnet50", "2to4", "smoke")
    assert resolved.origin("phases.train.train.length") == "scales/smoke.yaml"
    assert resolved.origin("phases.train.train.optimizer.momentum") == "networks/_imagenet.yaml"
    assert resolved.origin("model.build") == "networks/resnet50.yaml"
    assert resolved.origin("treatment.pattern.keep") == "treatments/2to4.yaml"
    assert resolved.origin("quantize.percentile") == "default"


def test_durations_become_steps() -> None:
    assert steps("90ep", 5004) == 450_360  # 1,281,167 images / 256
    assert steps("2000it", 7) == 2000
    assert steps("5%", 7, 300) == 15
    with pytest.raises(ValueError, match="share of a length"):
        steps("5%", 7)


# None of these change through a modification of the code; a [recipe] changelog line if they do.
PINNED = {
    ("resnet50", "full", "dense"): "e72c75e82a95",
    ("resnet50", "full", "quantize"): "82d002405783",
    ("bert_large", "full", "retrain"): "4361c386b4e0",
    ("fasterrcnn_rn50_fpn_1x", "full", "prune"): "52c59b19842c",
    ("transformer_xl", "full", "dense"): "8c687781ca1f",
    # those of the committed records: what full adds must not reach smaller scales unseen
    ("resnet50", "smoke", "dense"): "38637ea3f456",
    ("fasterrcnn_rn50_fpn_1x", "smoke", "dense"): "64ce00b6c098",
    ("fairseq_transformer", "smoke", "dense"): "eaa7f9b171d4",
    ("transformer_xl", "smoke", "dense"): "0d87fac5afbf",
    ("bert_large", "smoke", "dense"): "570844ac8e9c",
    ("resnet50", "lite", "dense"): "cfb0100f1f5f",
    ("fairseq_transformer", "lite", "dense"): "348475a07b02",
    ("transformer_xl", "lite", "dense"): "203df854625d",
}


@pytest.mark.parametrize(("network", "scale", "stage"), PINNED)
def test_digests_are_pinned(network: str, scale: str, stage: str) -> None:
    assert dag.stage_digest(network, "2to4", scale, stage) == PINNED[network, scale, stage]


def test_a_stage_reads_only_its_own_sections(edit: Callable) -> None:
    def digests() -> list[str]:
        return [
            dag.stage_digest("resnet50", "2to4", "full", stage)
            for stage in ("dense", "prune", "retrain", "quantize")
        ]

    before = digests()
    edit("networks/resnet50.yaml", "title:", "quantize: {batches: 3}\ntitle:")
    after = digests()
    assert [a == b for a, b in zip(before, after, strict=True)] == [True, True, True, False]
    edit("networks/resnet50.yaml", "title:", "# a comment\ntitle:")
    assert digests() == after


def test_every_study_names_known_treatments_and_stages() -> None:
    for name in resolve.names("studies"):
        plan = resolve.study(name)
        assert bool(plan.columns) != bool(plan.methods)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("methods:", "columns: {}\nmethdos:", "unknown key (did you mean 'methods'?)"),
        (
            "method: 2to4, relation: better, than: block32",
            "method: 2to5, relation: better, than: block32",
            "claims: unknown method '2to5'; known: dense, dense_again",
        ),
        ("baseline: [dense, dense_again]", "baseline: [thick]", "baseline: unknown method 'thick'"),
        ("baseline: [dense, dense_again]", "", "baseline names dense methods, where there are"),
        ("treatment: block32", "treatment: blokc32", "unknown treatment 'blokc32' (did you mean"),
        ("network: bert_base_half_hidden", "network: bert_half", "unknown network 'bert_half'"),
    ],
)
def test_a_mistake_in_a_study_of_methods_is_one_line(
    old: str, new: str, message: str, edit: Callable
) -> None:
    edit("studies/alternatives.yaml", old, new)
    with pytest.raises(resolve.SpecError) as raised:
        resolve.study("alternatives")
    assert message in str(raised.value) and "\n" not in str(raised.value)


def test_a_study_of_methods_asks_for_each_cell_once() -> None:
    cells = dag.study_cells("alternatives", "lite", resolve.names("networks"), [0, 1])
    assert len(cells) == len(set(cells)) == 20  # ten methods, two seeds
    assert {cell.network for cell in cells} == set(
        dag.study_networks("alternatives", resolve.names("networks"))
    )


def test_the_last_phase_alone_is_repeated_if_a_treatment_says_so() -> None:
    spec = dag.spec_of("minilm_l6", "2to4_last_phase_long", "lite")
    assert list(spec.retraining) == ["finetune"]
    assert spec.retraining["finetune"].train.length == "1200it"  # 200 % of 600
    assert list(dag.spec_of("minilm_l6", "2to4", "lite").retraining) == ["pretrain", "finetune"]


def test_a_phase_between_is_not_left_out(edit: Callable) -> None:
    edit(
        "networks/minilm_l6.yaml",
        "  finetune:",
        "  between: {task: language_model, objective: "
        "masked, data: {name: wikipedia}, train: {length: 1it, batch: 2, precision: fp16, "
        "optimizer: {name: sgd, lr: 0.1}}}\n  finetune:",
    )
    with pytest.raises(resolve.SpecError, match="repeat last leaves out"):
        resolve.resolve("minilm_l6", "2to4_last_phase", "full")
