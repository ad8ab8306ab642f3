"""Batches at once: the bits of one image after the other, and where they are not tried."""

import io
import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as arrow
import pyarrow.parquet as parquet
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset, default_collate

from workbench import resolve
from workbench.data import at_once
from workbench.data.images import Images, open_images
from workbench.data.loader import Shares, Steps, held_out_loader, shuffled, training_loader
from workbench.data.source import Source, open_source
from workbench.seeds import seed_for

PACK = Path(os.environ.get("WORKBENCH_DATA", resolve.ROOT.parent / "shared/data"))
SIZE, COUNT = 12, 40
CROP, WIDER, FLIP = (
    ("shifted_crop", {"pixels": 4}),
    ("shifted_crop", {"pixels": 15}),  # a window may lie in the black alone
    ("flip", {}),
)
CHOICES = [[CROP], [CROP, FLIP], [FLIP, CROP], [WIDER, FLIP], [CROP, FLIP, WIDER, FLIP]]
ELSEWHERE = [
    [("random_resized_crop", {})],
    [CROP, FLIP, ("color_jitter", {"brightness": 0.4})],
    [CROP, ("lighting", {"deviation": 0.1})],
    [("shifted_crop", {"pixels": 0}), FLIP],
]


class OneByOne(Dataset):
    """Images that a loader cannot ask for a batch."""

    def __init__(self, images: Images):
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, item: Any) -> Any:
        return self.images[item]


def encoded(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "png")
    return file.getvalue()


@pytest.fixture
def drawn() -> list[Image.Image]:
    """Images of random pixels, every third of one channel and every fifth with a palette."""
    colors = np.random.default_rng(0).integers(0, 256, (COUNT, SIZE, SIZE, 3), np.uint8)
    modes = ["P" if n % 5 == 0 else "L" if n % 3 == 0 else "RGB" for n in range(COUNT)]
    return [Image.fromarray(one).convert(mode) for one, mode in zip(colors, modes, strict=True)]


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, drawn: list[Image.Image]) -> Source:
    """The images as a data set of ten classes, with a cache of its own."""
    monkeypatch.setenv("WORKBENCH_CACHE", str(tmp_path / "cache"))
    return written(tmp_path, drawn)


def written(folder: Path, drawn: list[Image.Image]) -> Source:
    rows = [{"bytes": encoded(image), "path": ""} for image in drawn]
    labels = [number % 10 for number in range(len(drawn))]
    parquet.write_table(arrow.table({"image": rows, "label": labels}), folder / "small.parquet")
    files = {"train": "small.parquet", "held_out": "small.parquet"}
    return Source("small", "images", {"classes": 10, "files": files, "obtain": "-"}, folder)


def assert_same_batches(images: Images, batches: int = 12, batch: int = 16) -> None:
    assert images.at_once is not None
    for step in range(batches):
        indices = shuffled(len(images), batch, 1)(step)
        items = [(index, seed_for(0, "draw", step, index)) for index in indices]
        found, expected = images.__getitems__(items), [images[item] for item in items]
        assert [label for _, label in found] == [label for _, label in expected]
        assert all(torch.equal(a, b) for (a, _), (b, _) in zip(found, expected, strict=True))


def assert_same_loaders(together: DataLoader, one_by_one: DataLoader) -> None:
    for found, expected in zip(together, one_by_one, strict=True):
        for a, b in zip(found, expected, strict=True):
            assert torch.equal(a, b) and a.dtype == b.dtype and a.stride() == b.stride()


@pytest.mark.parametrize("noise", [0.0, 0.5])
@pytest.mark.parametrize("augment", CHOICES, ids=str)
def test_a_batch_has_the_bits_of_its_images(small: Source, augment: list, noise: float) -> None:
    images = open_images(small, "train", SIZE, label_noise=noise, augment=augment)
    before = torch.get_rng_state()
    assert_same_batches(images)
    assert torch.equal(torch.get_rng_state(), before)


def test_whole_held_out_images_are_the_same_at_once(small: Source) -> None:
    images = open_images(small, "held_out", SIZE, whole=True, limit=30)
    assert len(images) == 30  # of 40, evenly
    assert_same_batches(images, batch=7)


def test_the_same_images_are_shifted_and_flipped_by_other_keys(small: Source) -> None:
    images = open_images(small, "train", SIZE, augment=[CROP, FLIP])
    found = torch.stack([image for image, _ in images.__getitems__([(1, k) for k in range(200)])])
    assert len(found.unique(dim=0)) > 100  # of 9 * 9 * 2 = 162, 115 expected among 200 draws


@pytest.mark.parametrize("workers", [0, 2])
def test_loaders_give_the_same_batches_in_the_same_layout(small: Source, workers: int) -> None:
    images = open_images(small, "train", SIZE, label_noise=0.3, augment=[CROP, FLIP])
    for shares in (Shares(), Shares((1,), 2), Shares((0, 2), 4)):
        steps = Steps(shuffled(COUNT, 8, 3), 3, 2, 9, shares)
        loaders = [
            training_loader(chosen, steps, default_collate, workers)
            for chosen in (images, OneByOne(images))
        ]
        assert_same_loaders(*loaders)
    whole = open_images(small, "held_out", SIZE, whole=True)
    loaders = [
        held_out_loader(chosen, 16, 36, default_collate, workers)
        for chosen in (whole, OneByOne(whole))
    ]
    assert_same_loaders(*loaders)


@pytest.mark.parametrize("augment", ELSEWHERE, ids=str)
def test_other_augmentations_are_taken_one_by_one(small: Source, augment: list) -> None:
    images = open_images(small, "train", SIZE, augment=augment)
    assert images.at_once is None
    items = [(index, index * 7) for index in range(8)]
    for (image, label), item in zip(images.__getitems__(items), items, strict=True):
        assert torch.equal(image, images[item][0]) and label == images[item][1]


def test_images_of_another_size_are_taken_one_by_one(
    small: Source, tmp_path_factory: pytest.TempPathFactory, drawn: list[Image.Image]
) -> None:
    assert open_images(small, "train", SIZE + 1, augment=[CROP]).at_once is None
    assert open_images(small, "held_out", SIZE).at_once is None  # resized and cropped
    caltech = open_source("caltech10", Path("nowhere"))
    assert open_images(caltech, "train", 32, augment=[CROP]).at_once is None
    folder = tmp_path_factory.mktemp("odd")
    odd = written(folder, [*drawn[:-1], drawn[-1].resize((SIZE, SIZE + 1))])
    images = open_images(odd, "train", SIZE, augment=[CROP])
    assert images.at_once is None
    assert images.__getitems__([(COUNT - 1, 5)])[0][0].shape == (3, SIZE, SIZE)


def test_more_pixels_than_memory_is_meant_for_are_decoded_one_by_one(
    small: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    for most, kept in ((COUNT * 3 * SIZE**2, True), (COUNT * 3 * SIZE**2 - 1, False)):
        monkeypatch.setattr(at_once, "MOST", most)
        images = open_images(small, "train", SIZE, augment=[CROP])
        assert (images.at_once is not None) == kept


def test_a_folder_is_taken_one_by_one(tmp_path: Path, drawn: list[Image.Image]) -> None:
    (tmp_path / "train/one").mkdir(parents=True)
    drawn[1].save(tmp_path / "train/one/1.png")
    entry = {"classes": 1, "files": {"train": "train"}, "obtain": "-"}
    images = open_images(Source("one", "images", entry, tmp_path), "train", SIZE, augment=[CROP])
    assert images.at_once is None


def test_pixels_are_decoded_once_for_each_file_and_limit(
    small: Source, monkeypatch: pytest.MonkeyPatch, drawn: list[Image.Image]
) -> None:
    cases = [{}, {"limit": 20}]
    opened = [open_images(small, "held_out", SIZE, whole=True, **case) for case in cases]
    monkeypatch.setattr(at_once, "_decoding", lambda *given: None)  # would fail if called
    again = [open_images(small, "train", SIZE, augment=[CROP], **case) for case in cases]
    for first, second, step in zip(opened, again, (1, 2), strict=True):
        expected = np.stack([np.asarray(image.convert("RGB")) for image in drawn[::step]])
        for images in (first, second):
            assert np.array_equal(images.at_once.pixels, expected.transpose(0, 3, 1, 2))


@pytest.mark.skipif(not (PACK / "cifar10").exists(), reason="no cifar10: set WORKBENCH_DATA")
def test_cifar_is_read_at_once_as_its_networks_ask_for_it() -> None:
    phase = resolve.resolve("resnet20_cifar").spec.phases["train"]
    augment = [(each.name, each.args) for each in phase.data.augment]
    size, source = phase.data.image_size, open_source(phase.data.name, PACK)
    assert_same_batches(open_images(source, "train", size, 300, augment=augment), batch=128)
    assert_same_batches(open_images(source, "held_out", size, 300, whole=phase.data.whole))
