"""Inception v3 of torchvision with its auxiliary head, with width and depth as fractions."""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d
from torchvision.models import inception as blocks

from workbench.models.scaling import channels, layers

MINIMUM_SIZE = 75  # pixels; torchvision's: of smaller images a map is smaller than its kernel
AUXILIARY_SIZE = 17  # side of the map that the auxiliary head is made for, of images of 299

# class; then name, input channels, channels of the branches, settings of each block in a row.
# Depth keeps the first blocks of a row. B and D halve the size and pass their input on.
EARLY = (
    (
        blocks.InceptionA,
        ("Mixed_5b", 192, (64, 64, 96, 32), {"pool_features": 32}),
        ("Mixed_5c", 256, (64, 64, 96, 64), {"pool_features": 64}),
        ("Mixed_5d", 288, (64, 64, 96, 64), {"pool_features": 64}),
    ),
    (blocks.InceptionB, ("Mixed_6a", 288, (384, 96), {})),
    (
        blocks.InceptionC,
        ("Mixed_6b", 768, (192,) * 4, {"channels_7x7": 128}),
        ("Mixed_6c", 768, (192,) * 4, {"channels_7x7": 160}),
        ("Mixed_6d", 768, (192,) * 4, {"channels_7x7": 160}),
        ("Mixed_6e", 768, (192,) * 4, {"channels_7x7": 192}),
    ),
)
LATE = (
    (blocks.InceptionD, ("Mixed_7a", 768, (320, 192), {})),
    (
        blocks.InceptionE,
        ("Mixed_7b", 1280, (320, 384, 384, 384, 384, 192), {}),
        ("Mixed_7c", 2048, (320, 384, 384, 384, 384, 192), {}),
    ),
)
HALVING = (blocks.InceptionB, blocks.InceptionD)


class Auxiliary(blocks.InceptionAux):
    """torchvision's auxiliary head; the maps of images below 299 are enlarged to its size."""

    def forward(self, features: Tensor) -> Tensor:
        """Logits [batch, classes]."""
        if min(features.shape[-2:]) < AUXILIARY_SIZE:
            features = adaptive_avg_pool2d(features, AUXILIARY_SIZE)
        return super().forward(features)


class ScaledInception(blocks.Inception3):
    """torchvision's Inception v3 with its channel counts scaled; parameter names are the same.

    Training returns `InceptionOutputs(logits, aux_logits)`, evaluation the logits.
    """

    def __init__(self, classes: int, width: float, depth: float):
        """Blocks that depth leaves out are the identity."""
        nn.Module.__init__(self)
        self.aux_logits, self.transform_input = True, False
        self.width, self.channels = width, 3  # channels: what the module made last leaves
        self.Conv2d_1a_3x3 = self._convolution(32, kernel_size=3, stride=2)
        self.Conv2d_2a_3x3 = self._convolution(32, kernel_size=3)
        self.Conv2d_2b_3x3 = self._convolution(64, kernel_size=3, padding=1)
        self.maxpool1 = nn.MaxPool2d(3, stride=2)
        self.Conv2d_3b_1x1 = self._convolution(80, kernel_size=1)
        self.Conv2d_4a_3x3 = self._convolution(192, kernel_size=3)
        self.maxpool2 = nn.MaxPool2d(3, stride=2)
        self._add_rows(EARLY, depth)
        self.AuxLogits = Auxiliary(768, classes, conv_block=self._scaled(768))
        self.AuxLogits.fc = nn.Linear(channels(768, width), classes)
        self._add_rows(LATE, depth)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.dropout = nn.Dropout()
        self.fc = nn.Linear(self.channels, classes)
        for module in self.modules():
            # torchvision's deviation of 0.1 is TensorFlow's, whose RMSProp does not mind; with SGD
            # weights that large hardly turn, and torchvision announces their end
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor) -> blocks.InceptionOutputs | Tensor:
        """Logits [batch, classes] of images [batch, 3, H, W]; in training the auxiliary too."""
        if min(images.shape[-2:]) < MINIMUM_SIZE:
            given = " x ".join(str(side) for side in images.shape[-2:])
            raise ValueError(
                f"inception: images of {given} pixels given; at least {MINIMUM_SIZE} x "
                f"{MINIMUM_SIZE} are allowed: raise data.image_size or data.minimum_size"
            )
        return super().forward(images)

    def _convolution(self, base: int, **settings: int) -> nn.Module:
        given, self.channels = self.channels, channels(base, self.width)
        return blocks.BasicConv2d(given, self.channels, **settings)

    def _add_rows(self, rows: tuple[tuple[Any, ...], ...], depth: float) -> None:
        for kind, *row in rows:
            kept = layers(len(row), depth)
            for name, base, branches, settings in row[:kept]:
                setattr(self, name, kind(base, conv_block=self._scaled(base), **settings))
                passed = self.channels if kind in HALVING else 0
                self.channels = passed + sum(channels(branch, self.width) for branch in branches)
            for name, *_ in row[kept:]:
                setattr(self, name, nn.Identity())

    def _scaled(self, base: int) -> Callable[..., nn.Module]:
        """Makes the convolutions of a block whose input has `base` channels at width 1."""
        entering = self.channels  # a concatenation: not what scaling `base` would give

        def convolution(inputs: int, outputs: int, **settings: Any) -> nn.Module:
            inputs = entering if inputs == base else channels(inputs, self.width)
            return blocks.BasicConv2d(inputs, channels(outputs, self.width), **settings)

        return convolution


def build(*, classes: int = 1000, width: float = 1.0, depth: float = 1.0) -> nn.Module:
    """A classifier of images [batch, 3, H, W], H and W at least 75; see ScaledInception."""
    return ScaledInception(classes, width, depth)
