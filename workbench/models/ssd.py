"""SSD300 on a ResNet up to its third stage (NVIDIA DeepLearningExamples), in torchvision's SSD."""

from itertools import pairwise

from torch import Tensor, nn
from torchvision.models import detection
from torchvision.models.detection.anchor_utils import DefaultBoxGenerator

from workbench.models import backbone
from workbench.models.scaling import channels

FULL_SIZE = 300
SCALES = (21, 45, 99, 153, 207, 261, 315)  # sides of the default boxes, pixels of 300
ASPECT_RATIOS = ([2], [2, 3], [2, 3], [2, 3], [2], [2])
OUTER, INNER = (512, 512, 256, 256, 256), (256, 256, 128, 128, 128)
HALVED = 3  # of the five extra blocks the first three halve their map, the others trim its border


class Features(nn.Module):
    """Six maps of falling size: C4 without its stride (38x38 at 300 pixels), then five blocks."""

    def __init__(self, network: nn.Module, sides: list[int], width: float):
        """`sides` of the maps, at the size the images are resized to."""
        super().__init__()
        for layer in (network.layer3[0].conv2, network.layer3[0].downsample[0]):
            layer.stride = (1, 1)
        # under body, the names of a classifier's weights stay
        self.body = nn.Sequential()
        for name in ("conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3"):
            self.body.add_module(name, getattr(network, name))
        outer = [channels(base, width) for base in OUTER]
        self.out_channels = [backbone.outputs(network.layer3), *outer]
        blocks = zip(
            pairwise(self.out_channels), (channels(c, width) for c in INNER), sides, strict=False
        )
        self.extra = nn.ModuleList(
            _block(before, inner, after, number, side)
            for number, ((before, after), inner, side) in enumerate(blocks)
        )

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """The maps by number, finest first."""
        maps = [self.body(images)]
        for block in self.extra:
            maps.append(block(maps[-1]))
        return {str(number): features for number, features in enumerate(maps)}


def map_sides(image_size: int) -> list[int]:
    """The sides of the six maps: 38, 19, 10, 5, 3, 1 at 300 pixels."""
    sides = [-(-image_size // 8)]
    for number in range(len(OUTER)):
        side = sides[-1]
        trimmed = side - 2 if side > 2 else side
        sides.append(-(-side // 2) if number < HALVED else trimmed)
    return sides


def build(
    *,
    counts: list[int],
    frozen_stages: int = 0,
    freeze_norms: bool = False,
    classes: int = 81,
    image_size: int = FULL_SIZE,
    detections: int = 200,
    presized: bool = False,
    width: float = 1.0,
    depth: float = 1.0,
) -> nn.Module:
    """A detector over lists of images [3, H, W] in 0..1, made square; 8732 default boxes at 300.

    Whether they come `presized` does not matter to a network that makes them square.
    The loss is torchvision's: three hardest negatives for each positive of an image, divided by
    the positives of the batch (NVIDIA's example divides each image's by its own, then averages).
    """
    sides = map_sides(image_size)
    network = backbone.body(counts, frozen_stages, freeze_norms, width, depth)
    steps = [8, 16, 32, 64, *(image_size / side for side in sides[4:])]
    return detection.ssd.SSD(
        Features(network, sides, width),
        DefaultBoxGenerator(
            [*ASPECT_RATIOS], scales=[side / FULL_SIZE for side in SCALES], steps=steps
        ),
        (image_size, image_size),
        classes,
        score_thresh=0.05,
        nms_thresh=0.5,
        detections_per_img=detections,
        topk_candidates=200,
    )


def _block(before: int, inner: int, after: int, number: int, side: int) -> nn.Sequential:
    halves = number < HALVED
    # a map smaller than the kernel is padded and stays as it is
    padding = 1 if halves or side < 3 else 0
    block = nn.Sequential(
        nn.Conv2d(before, inner, 1, bias=False),
        nn.BatchNorm2d(inner),
        nn.ReLU(inplace=True),
        nn.Conv2d(inner, after, 3, stride=2 if halves else 1, padding=padding, bias=False),
        nn.BatchNorm2d(after),
        nn.ReLU(inplace=True),
    )
    for convolution in (block[0], block[3]):
        nn.init.xavier_uniform_(convolution.weight)
    return block
