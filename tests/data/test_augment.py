"""Augmentations: decided by their key, boxes and labels in step, names that a spec may give."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torchvision import tv_tensors
from torchvision.ops import masks_to_boxes

from workbench import admitted
from workbench.data import augment
from workbench.data.boxes import Boxes, open_boxes
from workbench.data.images import open_images
from workbench.data.loader import seeded
from workbench.data.source import DataError, open_source

NOWHERE = Path("nowhere")
# the lists of sunet7_128, ssd_rn50 and _detectron2_fpn
SUNET = [
    ("random_resized_crop", {}),
    ("color_jitter", {"brightness": 0.4, "contrast": 0.4, "saturation": 0.4}),
    ("flip", {}),
    ("lighting", {"deviation": 0.1}),
]
SSD = [("iou_crop", {}), ("flip", {}), ("color_jitter", {"brightness": 0.125, "hue": 0.05})]
SIDES = [("shortest_side", {"shares": [0.5, 0.75, 1.0], "longest": 2.0}), ("flip", {})]


def photos(name: str, chosen: list[tuple[str, dict[str, Any]]], size: int = 64) -> Boxes:
    masks = name == "nuclei_small"
    return open_boxes(open_source(name, NOWHERE), "train", masks, None, chosen, size)


def test_a_key_decides_all_that_is_drawn_and_leaves_the_generator_alone() -> None:
    images = open_images(open_source("caltech10", NOWHERE), "train", 32, augment=SUNET)
    boxes, before = photos("bccd_small", SSD), torch.get_rng_state()
    for examples in (images, boxes):
        first, again, other = (examples[(3, key)][0] for key in (1, 1, 2))
        assert torch.equal(first, again)
        assert first.shape != other.shape or not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), before)


def test_without_a_list_images_are_cropped_and_flipped_as_ever() -> None:
    source = open_source("caltech10", NOWHERE)
    default = open_images(source, "train", 32)
    listed = open_images(source, "train", 32, augment=SUNET[0:1] + SUNET[2:3])
    assert torch.equal(default[(5, 9)][0], listed[(5, 9)][0])
    held_out = open_images(source, "held_out", 32, augment=SUNET)
    assert torch.equal(held_out[(5, 1)][0], held_out[(5, 2)][0])


@pytest.mark.parametrize("name", ["bccd_small", "nuclei_small"])
def test_crops_keep_boxes_labels_and_masks_in_step(name: str) -> None:
    cropped, sizes, counts = photos(name, SSD), set(), set()
    for key in range(12):
        image, target = cropped[(1, key)]
        boxes = target["boxes"]
        assert len(boxes) == len(target["labels"]) == len(target.get("masks", boxes))
        assert (boxes[:, 2:] > boxes[:, :2]).all() and boxes.min() >= 0
        assert boxes[:, 2].max() <= image.shape[2] and boxes[:, 3].max() <= image.shape[1]
        if "masks" in target:
            held = target["masks"].flatten(1).bool().any(1)
            inside = masks_to_boxes(target["masks"][held])
            assert (inside[:, :2] >= boxes[held][:, :2]).all()
            assert (inside[:, 2:] < boxes[held][:, 2:]).all()  # the last pixel's index
        sizes.add(tuple(image.shape))
        counts.add(len(boxes))
    assert len(sizes) > 3 and len(counts) > 1


def test_the_shortest_side_is_one_of_the_shares_and_boxes_go_with_it() -> None:
    boxes, found = photos("bccd_small", SIDES[:1]), set()
    whole = photos("bccd_small", [])[(0, 0)][1]["boxes"]  # of 256 x 192 pixels
    for key in range(16):
        image, target = boxes[(0, key)]
        found.add(min(image.shape[1:]))
        scale = image.shape[1] / 192
        torch.testing.assert_close(target["boxes"], whole * scale, rtol=0.01, atol=0.5)
    assert found == {32, 48, 64}  # 0.5, 0.75 and 1 of 64
    narrow = photos("bccd_small", [("shortest_side", {"shares": [1.0], "longest": 1.0})])
    assert max(narrow[(0, 0)][0].shape[1:]) == 64  # the longer side rules


def test_lighting_adds_one_color_along_the_principal_components() -> None:
    image = tv_tensors.Image(torch.full((3, 4, 4), 51, dtype=torch.uint8))
    light = augment.Lighting(0.1)
    added = torch.stack([seeded(key, lambda: light(image)) - 0.2 for key in range(600)])
    assert added.dtype == torch.float32
    assert (added.flatten(2) - added[:, :, 0, :1]).abs().max() < 1e-6  # one color an image
    colors = added[:, :, 0, 0].double()
    # covariance of V diag(values) alpha, alpha of variance 0.01: V diag(values ** 2) V^T / 100
    vectors, values = light.VECTORS.double(), light.VALUES.double()
    expected = vectors @ torch.diag(values**2) @ vectors.T / 100
    torch.testing.assert_close(torch.cov(colors.T), expected, rtol=0.2, atol=1e-5)
    torch.testing.assert_close(augment.Lighting(0.0)(image), image.float() / 255)


def test_every_name_that_a_spec_may_give_is_a_function_and_none_is_left_out() -> None:
    named = {**admitted.augmentations("images"), **admitted.augmentations("boxes")}
    assert set(named) == {*augment.IMAGES, *augment.BOXES}
    assert all(callable(getattr(augment, name)) for name in named)
    assert named["color_jitter"] == ["brightness", "contrast", "saturation", "hue"]
    assert admitted.augmentations("pairs") == {}


def test_images_of_different_sizes_make_no_batch() -> None:
    with pytest.raises(DataError, match="names flip; .* name random_resized_crop or shifted"):
        open_images(open_source("caltech10", NOWHERE), "train", 32, augment=[("flip", {})])


def test_a_shifted_crop_moves_the_whole_image_by_at_most_its_pixels() -> None:
    source = open_source("caltech10", NOWHERE)
    whole = open_images(source, "held_out", 32, whole=True)[0, 0][0]
    crop = (("shifted_crop", {"pixels": 4}),)
    images = open_images(source, "train", 32, augment=crop)
    images.read = open_images(source, "held_out", 32).read
    drawn = torch.stack([images[0, key][0] for key in range(20)])
    inside = torch.nn.functional.pad(whole, (4, 4, 4, 4), value=float("nan"))
    shifts = [inside[:, y : y + 32, x : x + 32] for y in range(9) for x in range(9)]
    for one in drawn:  # padding is black before it is normalized, so only pixels are compared
        assert any(torch.allclose(one[~p.isnan()], p[~p.isnan()]) for p in shifts)
    assert len(drawn.unique(dim=0)) > 10
