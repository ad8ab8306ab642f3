"""Batches of small images at once: the bits of one image after the other, at a fraction of the CPU.

Done where images have the asked size already, so that resizing leaves them as they are, and where
nothing but shifts and flips is drawn. `Images` takes all else one by one.
"""

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.lib.stride_tricks import sliding_window_view
from PIL import Image, features

from workbench.data.augment import Named
from workbench.data.derived import derived
from workbench.data.loader import Item

PIXELS = 1  # version of what `decoded` keeps; raise it when the arrays or their rows change
MOST = 2**30  # bytes of decoded pixels held in memory, which a loader's workers share
DECODERS = ("pil", "libjpeg_turbo", "webp", "zlib", "zlib_ng", "jpg_2000")


@dataclass(frozen=True)
class Shift:
    """`augment.shifted_crop` of images [n, 3, size, size] that have their size."""

    pixels: int

    def draw(self, generator: torch.Generator) -> list[int]:
        """How far down and right the window lies in a padded image, as v2.RandomCrop draws it."""
        return torch.randint(0, 2 * self.pixels + 1, (2,), generator=generator).tolist()

    def apply(self, images: np.ndarray, drawn: np.ndarray) -> np.ndarray:
        """Each image's window of itself with `pixels` of black on each side; drawn is [n, 2]."""
        count, colors, size, _ = images.shape
        inside = slice(self.pixels, self.pixels + size)
        padded = np.zeros((count, colors, *2 * (size + 2 * self.pixels,)), images.dtype)
        padded[:, :, inside, inside] = images
        windows = sliding_window_view(padded, (size, size), (2, 3))
        return windows[np.arange(count), :, drawn[:, 0], drawn[:, 1]]


@dataclass(frozen=True)
class Flip:
    """`augment.flip` of images [n, 3, size, size]."""

    def draw(self, generator: torch.Generator) -> list[int]:
        """Whether to flip, as v2.RandomHorizontalFlip draws it."""
        return [torch.rand(1, generator=generator).item() < 0.5]

    def apply(self, images: np.ndarray, drawn: np.ndarray) -> np.ndarray:
        """The images, those flipped that are drawn so; drawn is [n, 1]."""
        flipped = drawn[:, 0] != 0
        images[flipped] = images[flipped, :, :, ::-1]
        return images


def steps_of(augment: Named) -> list[Shift | Flip] | None:
    """What the named augmentations do to a batch, or None if one of them is left to `augment`."""
    steps: list[Shift | Flip] = []
    for name, arguments in augment:
        pixels = arguments.get("pixels")
        if name == "shifted_crop" and isinstance(pixels, int) and pixels > 0:  # 0 draws nothing
            steps.append(Shift(pixels))
        elif name == "flip":
            steps.append(Flip())
        else:
            return None
    return steps


class AtOnce:
    """Decoded images, [n, 3, size, size] of uint8, and what is done to a batch of them."""

    def __init__(self, pixels: np.ndarray, steps: Sequence[Shift | Flip]):
        """`steps` are as `steps_of` gives them; held-out images take none."""
        self.pixels, self.steps = pixels, steps
        self.generator = torch.Generator()  # draws what torch's own draws from the same seed

    def __call__(self, items: Sequence[Item]) -> np.ndarray:
        """The images of a batch, augmented as `seeded` does it: each draws from its key alone."""
        images = self.pixels[[index for index, _ in items]]
        drawn: list[list[list[int]]] = [[] for _ in self.steps]
        for _, key in items if self.steps else ():
            self.generator.manual_seed(key)
            for step, values in zip(self.steps, drawn, strict=True):
                values.append(step.draw(self.generator))
        for step, values in zip(self.steps, drawn, strict=True):
            images = step.apply(images, np.array(values))
        return images


def decoded(images: Sequence[bytes], size: int, made_of: dict[str, Any]) -> np.ndarray | None:
    """The pixels of encoded images, [n, 3, size, size] of uint8, made once for what `made_of` says.

    None if an image has another size, or if they are larger than `MOST` together.
    """
    if len(images) * 3 * size**2 > MOST or rgb(images[0]).size != (size, size):
        return None
    versions = {name: features.version(name) for name in DECODERS}
    made_of = {"pixels": PIXELS, "size": size, "decoders": versions, **made_of}
    return derived(made_of, _decoding(images, size)).get("pixels")


def _decoding(images: Sequence[bytes], size: int) -> Callable[[], dict[str, np.ndarray]]:
    def make() -> dict[str, np.ndarray]:
        pixels = np.empty((len(images), 3, size, size), np.uint8)
        for index, image in enumerate(images):  # two threads took twice as long
            found = rgb(image)
            if found.size != (size, size):
                return {}
            pixels[index] = np.asarray(found).transpose(2, 0, 1)
        return {"pixels": pixels}

    return make


def rgb(image: bytes) -> Image.Image:
    """The decoded image."""
    return Image.open(io.BytesIO(image)).convert("RGB")
