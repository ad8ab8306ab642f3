"""DenseNet of torchvision, with width and depth as fractions."""

from torch import nn
from torchvision.models.densenet import DenseNet

from workbench.models.scaling import channels, layers

MINIMUM_SIZE = 29  # of smaller images the last transition leaves nothing


def build(
    *,
    counts: list[int],
    growth: int = 32,
    stem: int = 64,
    classes: int = 1000,
    width: float = 1.0,
    depth: float = 1.0,
) -> nn.Module:
    """A classifier of images [batch, 3, H, W] into logits [batch, classes].

    Width scales the growth and the stem; everything else is sums and halves of those.
    """
    return DenseNet(
        growth_rate=channels(growth, width),
        block_config=tuple(layers(count, depth) for count in counts),
        num_init_features=channels(stem, width),
        num_classes=classes,
    )
