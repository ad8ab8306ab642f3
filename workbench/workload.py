"""What a network computes in one pass at full scale: its module and the arguments of a batch."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torchvision.models.detection import RetinaNet
from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN
from torchvision.models.detection.ssd import SSD

from workbench import dag, inventory
from workbench.models.levenshtein import Levenshtein
from workbench.sections import Phase

TOKENS = 128  # of a sequence, as in the talk's table of networks
REGION, MASK_REGION = 7, 14  # sides of what RoIAlign cuts out, torchvision's
Arguments = Callable[[int, torch.device | str], tuple[Tensor, ...]]


class WorkloadError(ValueError):
    """A network of which no single pass can be predicted or timed, with the reason."""


@dataclass(frozen=True)
class Workload:
    """One pass: `module(*arguments(batch, device))`, of so many `unit`s as the batch is large.

    `size` says how large each is, `left_out` what of the network is not in the pass.
    """

    network: str
    title: str
    module: nn.Module
    arguments: Arguments
    unit: str
    size: str
    left_out: str = ""


def workload(network: str, device: torch.device | str = "meta") -> Workload:
    """The pass of a network with random weights in evaluation mode; WorkloadError if it has none.

    Masks and lengths of padding are not given, so that attention runs its fastest kernels.
    """
    spec = dag.spec_of(network, "2to4", "full")
    phase = spec.phases[spec.last_phase]
    if spec.model_of(spec.last_phase).build == "gnmt":
        raise WorkloadError(
            f"{network}: packs sentences by their lengths, which are read from its input, so it "
            "has no pass of fixed shapes; of its weights only attention and classifier can be "
            "swapped, as LSTM gates have no 2:4 kernel"
        )
    model = inventory.built(network, "full", device).eval().requires_grad_(False)
    makers = {
        "classification": _images,
        "detection": _detector,
        "proposals": _detector,
        "translation": _pairs,
        "translation_by_edits": _edits,
    }
    return makers.get(phase.task, _tokens)(network, spec.title, model, phase)


def _images(network: str, title: str, model: nn.Module, phase: Phase) -> Workload:
    side = phase.data.image_size
    return Workload(network, title, model, _pictures(side, side), "images", f"{side} px")


def _tokens(network: str, title: str, model: nn.Module, _: Phase) -> Workload:
    return Workload(network, title, model, _drawn(1), "sequences", f"{TOKENS} tokens")


def _pairs(network: str, title: str, model: nn.Module, _: Phase) -> Workload:
    size = f"{TOKENS} tokens on either side"
    left_out = "the search for a translation: all target tokens are read at once, as in training"
    return Workload(network, title, model, _drawn(2), "sentence pairs", size, left_out)


def _edits(network: str, title: str, model: Levenshtein, _: Phase) -> Workload:
    size = f"{TOKENS} tokens on either side"
    left_out = "all but one reading of the target and the choice of its words"
    return Workload(network, title, EditPass(model), _drawn(2), "sentence pairs", size, left_out)


def _detector(network: str, title: str, model: nn.Module, phase: Phase) -> Workload:
    short = phase.data.image_size
    long = short if isinstance(model, SSD) else -(-short * 4 // 3 // 32) * 32  # an image of 4:3
    dense, size = DetectorPass(model), f"{short} x {long} px"
    left_out = "resizing, the choice of boxes (NMS) and RoIAlign, whose shapes follow the image"
    return Workload(network, title, dense, _pictures(short, long), "images", size, left_out)


def _pictures(height: int, width: int) -> Arguments:
    def drawn(batch: int, device: torch.device | str) -> tuple[Tensor, ...]:
        return (torch.randn(batch, 3, height, width, device=device),)

    return drawn


def _drawn(count: int) -> Arguments:
    def drawn(batch: int, device: torch.device | str) -> tuple[Tensor, ...]:
        # small numbers are words in every vocabulary, and none of them is padding
        return tuple(torch.randint(5, 1000, (batch, TOKENS), device=device) for _ in range(count))

    return drawn


class EditPass(nn.Module):
    """Of a Levenshtein transformer: source read, target read once, a word for each token."""

    def __init__(self, model: Levenshtein) -> None:
        """Shares the model's weights."""
        super().__init__()
        self.model = model

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        """Logits [batch, length, vocabulary]."""
        reading = self.model.start(source)
        states = self.model.features(target, reading.source, reading.visible)
        return self.model.output_projection(states)


class DetectorPass(nn.Module):
    """Of a detector what has fixed shapes: backbone, pyramid and heads.

    The heads of an R-CNN get as many regions as it proposes in evaluation, of random content.
    """

    def __init__(self, detector: nn.Module) -> None:
        """Shares the detector's weights; WorkloadError for one of another kind."""
        super().__init__()
        self.backbone, self.regions, self.detections = detector.backbone, 0, 0
        if isinstance(detector, SSD | RetinaNet):
            self.head = detector.head
        elif isinstance(detector, GeneralizedRCNN):
            self.head = detector.rpn.head
            self.boxes = getattr(detector.roi_heads, "box_head", None)
            self.box_predictor = getattr(detector.roi_heads, "box_predictor", None)
            self.masks = getattr(detector.roi_heads, "mask_head", None)
            self.mask_predictor = getattr(detector.roi_heads, "mask_predictor", None)
            if self.boxes is not None:
                self.regions = detector.rpn.post_nms_top_n()
                self.detections = detector.roi_heads.detections_per_img
        else:
            raise WorkloadError(f"a {type(detector).__name__}: its passes are not known")

    def forward(self, images: Tensor) -> list[Tensor]:
        """Everything that the heads give."""
        features = list(self.backbone(images).values())
        found = [self.head(features)]
        count, channels = len(images), features[0].shape[1]
        if self.regions:
            size = count * self.regions, channels, REGION, REGION
            found.append(self.box_predictor(self.boxes(_like(features[0], size))))
            if self.masks is not None:
                size = count * self.detections, channels, MASK_REGION, MASK_REGION
                found.append(self.mask_predictor(self.masks(_like(features[0], size))))
        return found


def _like(features: Tensor, size: tuple[int, ...]) -> Tensor:
    # not empty: NaN there would make the comparison with the dense network void
    return features.new_ones(size).contiguous(memory_format=torch.channels_last)
