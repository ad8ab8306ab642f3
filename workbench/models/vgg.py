"""VGG of torchvision, with or without batch norm, with width and depth as fractions."""

from torch import nn
from torchvision.models.vgg import VGG, make_layers

from workbench.models.scaling import channels, layers

MINIMUM_SIZE = 32  # pixels; five poolings halve it

POOLED = 7  # the side of the last feature map, as the hidden layers see it


class ScaledVGG(VGG):
    """torchvision's VGG with its channel counts scaled; parameter names are the same."""

    def __init__(self, features: nn.Module, last: int, hidden: int, classes: int):
        """`last` channels leave the features; `hidden` is the size of both hidden layers."""
        nn.Module.__init__(self)
        self.features = features
        self.avgpool = nn.AdaptiveAvgPool2d(POOLED)
        self.classifier = nn.Sequential(
            nn.Linear(last * POOLED * POOLED, hidden),
            nn.ReLU(inplace=True),
            nn.Dropout(),
            nn.Linear(hidden, hidden),
            nn.ReLU(inplace=True),
            nn.Dropout(),
            nn.Linear(hidden, classes),
        )
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                nn.init.zeros_(module.bias)
            elif isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, 0, 0.01)
                nn.init.zeros_(module.bias)


def build(
    *,
    counts: list[int],
    batch_norm: bool = True,
    classes: int = 1000,
    width: float = 1.0,
    depth: float = 1.0,
) -> nn.Module:
    """A classifier of images [batch, 3, H, W], H and W at least 32, into logits [batch, classes].

    `counts` are the convolutions of the five stages, each of which ends in a pooling.
    """
    widths = [channels(base, width) for base in (64, 128, 256, 512, 512)]
    plan: list[int | str] = []
    for size, count in zip(widths, counts, strict=True):
        plan += [size] * layers(count, depth) + ["M"]
    return ScaledVGG(make_layers(plan, batch_norm), widths[-1], channels(4096, width), classes)
