"""Augmentations by name: what training does at random to an image and to the boxes on it.

Each function of one positional argument, the image size of the spec, makes one; its keywords are
the arguments that a spec may give. All draw from torch's generator alone, so `seeded` decides them.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torchvision.transforms import v2

# which readers may use which; a spec is checked against these names (workbench/resolve.py)
IMAGES = ("random_resized_crop", "shifted_crop", "flip", "color_jitter", "lighting")
BOXES = ("iou_crop", "flip", "color_jitter", "shortest_side")

Named = Sequence[tuple[str, dict[str, Any]]]


def compose(chosen: Named, size: int) -> v2.Transform:
    """The named augmentations one after the other, for images whose spec asks for `size`."""
    made = [globals()[name](size, **arguments) for name, arguments in chosen]
    return v2.Compose([v2.Identity(), *made])  # an empty list leaves images as they are


def random_resized_crop(size: int) -> v2.Transform:
    """A random part of 8 to 100 % of the area, made `size` pixels square."""
    return v2.RandomResizedCrop(size, antialias=True)


def shifted_crop(size: int, *, pixels: int) -> v2.Transform:
    """The whole image, made `size` pixels square and shifted by up to `pixels`, black beside it."""
    return v2.Compose(
        [v2.Resize((size, size), antialias=True), v2.RandomCrop(size, padding=pixels)]
    )


def flip(size: int) -> v2.Transform:
    """Left and right exchanged half the time."""
    return v2.RandomHorizontalFlip()


def color_jitter(
    size: int,
    *,
    brightness: float = 0.0,
    contrast: float = 0.0,
    saturation: float = 0.0,
    hue: float = 0.0,
) -> v2.Transform:
    """Each color property changed by up to its share, in random order."""
    return v2.ColorJitter(brightness, contrast, saturation, hue)


def lighting(size: int, *, deviation: float) -> v2.Transform:
    """Color noise along the principal components of ImageNet (Krizhevsky et al. 2012)."""
    return Lighting(deviation)


def iou_crop(size: int) -> v2.Transform:
    """SSD's crop: a part that overlaps a box by a drawn IoU, or any part, or the whole image."""
    return v2.Compose([v2.RandomIoUCrop(), v2.SanitizeBoundingBoxes()])


def shortest_side(size: int, *, shares: list[float], longest: float) -> v2.Transform:
    """The shorter side made one of the `shares` of `size`, the other at most `longest` times it."""
    return v2.RandomShortestSize([round(size * share) for share in shares], int(size * longest))


class Lighting(v2.Transform):
    """Adds a random multiple of each principal component to an image, which becomes 0..1 float."""

    # eigenvalues and eigenvectors (columns) of ImageNet's colors, as fb.resnet.torch gives them
    VALUES = torch.tensor([0.2175, 0.0188, 0.0045])
    VECTORS = torch.tensor(
        [[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]]
    )

    def __init__(self, deviation: float):
        """`deviation` of the multiples, each normally distributed around 0."""
        super().__init__()
        self.deviation = deviation

    def make_params(self, flat_inputs: list[Any]) -> dict[str, torch.Tensor]:
        """The color to add, [3, 1, 1]."""
        multiples = torch.randn(3) * self.deviation
        return {"color": (self.VECTORS @ (multiples * self.VALUES)).view(3, 1, 1)}

    def transform(self, inpt: Any, params: dict[str, torch.Tensor]) -> Any:
        """The image as float, colored."""
        return v2.functional.to_dtype(inpt, torch.float32, scale=True) + params["color"]
