"""Stacked U-Nets for classification: small U-Nets in a row, each with a shortcut around it."""

import torch
from torch import Tensor, nn

from workbench.models.scaling import channels, layers

MINIMUM_SIZE = 29  # of smaller images the last pooling leaves nothing


class Up(nn.Module):
    """Twice the size by a transposed convolution, then a 3x3 convolution."""

    def __init__(self, inputs: int, width: int, outputs: int | None):
        """`outputs` asks for a 1x1 convolution at the end."""
        super().__init__()
        self.activate = _activation(inputs)
        self.enlarge = nn.ConvTranspose2d(inputs, width, 3, stride=2, padding=1)
        tail = [*_activation(width), nn.Conv2d(width, width, 3, padding=1)]
        if outputs:
            tail += [*_activation(width), nn.Conv2d(width, outputs, 1)]
        self.refine = nn.Sequential(*tail)

    def forward(self, features: Tensor, size: torch.Size) -> Tensor:
        """The features at `size`, which halving may have rounded up."""
        return self.refine(self.enlarge(self.activate(features), output_size=size))


class UNet(nn.Module):
    """Down `levels` times and up again at an inner width; the result is added to the input."""

    def __init__(self, inputs: int, width: int, outputs: int, levels: int):
        """A 1x1 convolution of the activated input is the shortcut where channels change."""
        super().__init__()
        changes = inputs != outputs
        self.activate = _activation(inputs) if changes else nn.Identity()
        self.shortcut = nn.Conv2d(inputs, outputs, 1) if changes else nn.Identity()
        narrow = [nn.Conv2d(inputs, width, 1)]
        if not changes:
            narrow = [*_activation(inputs), *narrow]
        self.down = nn.ModuleList()
        self.up = nn.ModuleList()
        for level in range(levels):
            head = narrow if level == 0 else []
            self.down.append(nn.Sequential(*head, *_halving(width)))
            joined = width if level == levels - 1 else 2 * width  # what came up beside the skip
            self.up.append(Up(joined, width, outputs if level == 0 else None))

    def forward(self, features: Tensor) -> Tensor:
        """Features of the same size with `outputs` channels."""
        maps = [self.activate(features)]
        for down in self.down:
            maps.append(down(maps[-1]))
        risen = maps[-1]
        for level in reversed(range(len(self.up))):
            risen = self.up[level](risen, maps[level].shape[-2:])
            if level:
                risen = torch.cat([risen, maps[level]], 1)
        return risen + self.shortcut(maps[0])


class Stem(nn.Module):
    """A strided convolution and a strided residual block: a quarter of the size."""

    def __init__(self, width: int):
        """Twice `width` channels leave it."""
        super().__init__()
        self.convolution = nn.Conv2d(3, width, 7, stride=2, padding=3)
        self.activate = _activation(width)
        self.body = nn.Sequential(
            nn.Conv2d(width, 2 * width, 3, stride=2, padding=1),
            *_activation(2 * width),
            nn.Conv2d(2 * width, 2 * width, 3, padding=1),
        )
        self.shortcut = nn.Conv2d(width, 2 * width, 1, stride=2)

    def forward(self, images: Tensor) -> Tensor:
        """Features of images [batch, 3, H, W]."""
        features = self.activate(self.convolution(images))
        return self.body(features) + self.shortcut(features)


def build(
    *,
    counts: list[int],
    outputs: list[int],
    inner: int = 128,
    classes: int = 1000,
    width: float = 1.0,
    depth: float = 1.0,
) -> nn.Module:
    """A classifier of images [batch, 3, H, W] into logits [batch, classes].

    `counts` and `outputs` are the U-Nets and channels of the stages; the last stage's are flat.
    """
    stem, narrow = channels(64, width), channels(inner, width)
    modules: list[nn.Module] = [Stem(stem)]
    inputs = 2 * stem
    for stage, (count, base) in enumerate(zip(counts, outputs, strict=True), start=1):
        wide, is_last = channels(base, width), stage == len(counts)
        for _ in range(layers(count, depth)):
            modules.append(UNet(inputs, narrow, wide, levels=1 if is_last else 2))
            inputs = wide
        if not is_last:
            modules.append(nn.AvgPool2d(2))
    pool = [*_activation(inputs), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    model = nn.Sequential(*modules, *pool, nn.Linear(inputs, classes))
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            nn.init.zeros_(module.bias)
    return model


def _activation(width: int) -> nn.Sequential:
    return nn.Sequential(nn.BatchNorm2d(width), nn.ReLU(inplace=True))


def _halving(width: int) -> list[nn.Module]:
    return [
        *_activation(width),
        nn.Conv2d(width, width, 3, stride=2, padding=1),
        *_activation(width),
        nn.Conv2d(width, width, 3, padding=1),
    ]
