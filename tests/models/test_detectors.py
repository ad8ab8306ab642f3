"""Detectors: sizes as published, default boxes and hard negatives of SSD, levels of RetinaNet."""

import math

import pytest
import torch
from torchvision.models.detection.image_list import ImageList
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from workbench import models
from workbench.models import ssd

TINY = {"counts": [3, 4, 6, 3], "width": 0.03125, "depth": 0.0625, "detections": 10}
BUILDERS = [("rcnn", {}), ("rcnn", {"masks": True}), ("retinanet", {}), ("rpn", {}), ("ssd", {})]


@pytest.mark.parametrize(("builder", "more"), BUILDERS)
def test_a_detector_gives_losses_in_training_and_boxes_after(builder: str, more: dict) -> None:
    torch.manual_seed(0)
    model = models.build(builder, **TINY, **more, classes=4, image_size=64, frozen_stages=1)
    assert not model.backbone.body.conv1.weight.requires_grad
    assert model.backbone.body.layer1[0].conv1.weight.requires_grad
    images = [torch.rand(3, 64, 80), torch.rand(3, 80, 64)]
    target = {"boxes": torch.tensor([[8.0, 8, 40, 48]]), "labels": torch.tensor([3])}
    target["masks"] = torch.ones(1, 64, 80, dtype=torch.uint8)
    upright = {**target, "masks": torch.ones(1, 80, 64, dtype=torch.uint8)}
    losses = model(images, [target, upright])
    assert all(loss.isfinite() for loss in losses.values())
    assert target["labels"].item() == 3
    for output in model.eval()(images):
        assert output["boxes"].shape[1] == 4
        assert ("labels" in output) == (builder != "rpn")
        assert ("masks" in output) == bool(more)


def test_the_boxes_of_the_background_are_zero() -> None:
    model = models.build("rcnn", **TINY, masks=True, classes=4, image_size=64)
    logits, deltas = model.roi_heads.box_predictor(torch.rand(2, 32))
    assert (logits.shape, deltas.shape) == ((2, 4), (2, 16))
    assert not deltas[:, :4].any() and deltas[:, 4:].all()
    masks = model.roi_heads.mask_predictor(torch.rand(2, 32, 14, 14))
    assert masks.shape == (2, 4, 28, 28)
    assert not masks[:, 0].any() and masks[:, 1:].any()


def test_retinanet_makes_p6_from_c5_and_labels_from_1() -> None:
    with torch.device("meta"):
        full = models.build("retinanet", counts=[3, 4, 6, 3])
    assert full.backbone.fpn.extra_blocks.p6.in_channels == 2048  # 256 if it were made from P5
    assert not full.backbone.fpn.extra_blocks.use_P5
    assert full.head.classification_head.cls_logits.out_channels == 9 * 80
    model = models.build("retinanet", **TINY, classes=4, image_size=64).eval()
    model.score_thresh = 0.0
    assert set(model([torch.rand(3, 64, 64)])[0]["labels"].tolist()) <= {1, 2, 3}
    # three sizes an octave, 32 x 2^(1/3) = 40.3 and 32 x 2^(2/3) = 50.8, as torchvision rounds
    assert full.anchor_generator.sizes[0] == (32, 40, 50)


def test_rcnn_and_rpn_pool_p6_from_p5() -> None:
    for builder in ("rcnn", "rpn"):
        model = models.build(builder, **TINY, classes=4, image_size=64)
        assert isinstance(model.backbone.fpn.extra_blocks, LastLevelMaxPool)
        levels = model.backbone(torch.rand(1, 3, 128, 128))
        assert [features.shape[-1] for features in levels.values()] == [32, 16, 8, 4, 2]
        assert torch.equal(levels["pool"], levels["3"][:, :, ::2, ::2])  # stride 2 of one pixel


def test_retinanet_learns_boxes_by_smooth_l1_where_asked() -> None:
    model = models.build("retinanet", **TINY, classes=4, image_size=64, smooth_l1_beta=0.1)
    anchors = torch.tensor([[0.0, 0, 8, 8], [0.0, 0, 8, 8]])
    loss = model.head.regression_head.compute_loss(
        [{"boxes": anchors[:1]}],
        {"bbox_regression": torch.tensor([[[0.05, 0.0, 0.0, 1.1], [9.0] * 4]])},
        [anchors],
        [torch.tensor([0, -1])],
    )
    # the target is 0: 0.05 ^ 2 / 2 / 0.1 + (1.1 - 0.1 / 2), over one positive anchor
    assert loss.item() == pytest.approx(0.0125 + 1.05)


@pytest.mark.parametrize("builder", ["rcnn", "retinanet", "rpn"])
def test_presized_photos_are_resized_in_evaluation_only(builder: str) -> None:
    model = models.build(builder, **TINY, classes=4, image_size=64, presized=True)
    photos = [torch.rand(3, 51, 70)]
    assert model.transform(photos)[0].image_sizes == [(51, 70)]
    assert model.eval().transform(photos)[0].image_sizes == [(64, 87)]  # 70 x 64 / 51


def test_ssd_has_8732_default_boxes_at_300_pixels() -> None:
    model = models.build("ssd", **TINY, classes=4, image_size=300).eval()
    images = ImageList(torch.rand(1, 3, 300, 300), [(300, 300)])
    with torch.inference_mode():
        maps = list(model.backbone(images.tensors).values())
    assert [m.shape[-1] for m in maps] == [38, 19, 10, 5, 3, 1]
    boxes = model.anchor_generator(images, maps)[0]
    # 38^2 x 4 + 19^2 x 6 + 10^2 x 6 + 5^2 x 6 + 3^2 x 4 + 4
    assert len(boxes) == 5776 + 2166 + 600 + 150 + 36 + 4 == 8732
    # a square of 21 pixels around the middle of the first cell of 8 pixels
    assert boxes[0].tolist() == pytest.approx([4 - 10.5, 4 - 10.5, 4 + 10.5, 4 + 10.5], abs=1e-4)


@pytest.mark.parametrize("side", [64, 128, 320])
def test_ssd_has_six_maps_at_any_size(side: int) -> None:
    model = models.build("ssd", **TINY, classes=4, image_size=side).eval()
    with torch.inference_mode():
        maps = model.backbone(torch.rand(1, 3, side, side)).values()
    assert [m.shape[-1] for m in maps] == ssd.map_sides(side)


def test_ssd_learns_from_the_three_hardest_negatives_of_each_positive() -> None:
    model = models.build("ssd", **TINY, classes=2, image_size=64)
    anchors = torch.tensor([[0.0, 0, 8, 8]]).repeat(8, 1)
    logits = torch.zeros(1, 8, 2)
    logits[0, 1:, 1] = torch.tensor([-3.0, 2.0, -1.0, 1.0, 0.0, -2.0, -4.0])
    losses = model.compute_loss(
        [{"boxes": anchors[:1], "labels": torch.tensor([1])}],
        {"bbox_regression": torch.zeros(1, 8, 4), "cls_logits": logits},
        [anchors],
        [torch.tensor([0, -1, -1, -1, -1, -1, -1, -1])],
    )
    # the positive costs log 2; a negative with logit x costs log(1 + e^x): x = 2, 1 and 0 are hard
    expected = math.log(2) + sum(math.log1p(math.exp(x)) for x in (2, 1, 0))
    assert losses["classification"].item() == pytest.approx(expected)
    assert losses["bbox_regression"].item() == pytest.approx(0, abs=1e-6)


def test_no_more_stages_freeze_than_a_resnet_has() -> None:
    with pytest.raises(ValueError, match="frozen_stages=6: .* 0 to 5 can be frozen"):
        models.build("ssd", **TINY, frozen_stages=6)
