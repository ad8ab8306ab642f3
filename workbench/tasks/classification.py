"""Image classification: cross-entropy, top-1 accuracy in percent."""

from collections import Counter
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from workbench.data.images import open_images
from workbench.sections import Phase
from workbench.tasks import base
from workbench.tasks.base import moved

AUXILIARY_SHARE = 0.4  # weight of an auxiliary head's loss (Szegedy et al. 2015, Inception v3)


class Task(base.Task):
    """Images of one of `classes` kinds."""

    metric, higher_is_better = "top1", True
    why_no_graph = None
    distills = True

    def __init__(self, phase: Phase, seed: int, root: Path):
        """Open the training and held-out images."""
        super().__init__(phase, seed, root)
        data = phase.data
        size = max(data.image_size or 224, data.minimum_size or 1)
        self.train = open_images(
            self.source, "train", size, data.limit, data.label_noise, self.augment
        )
        self.held_out = open_images(self.source, "held_out", size, whole=data.whole)

    @classmethod
    def declared_shape(cls, phase: Phase, entry: dict[str, Any]) -> dict[str, Any]:
        """The number of classes."""
        return {"classes": entry["classes"]}

    def loss(self, model: nn.Module, batch: Any, carry: Any) -> tuple[Tensor, Any]:
        """Cross-entropy with the spec's label smoothing, an auxiliary head's share added.

        A teacher's share is of the main head alone.
        """
        images, labels = batch
        outputs = model(images)
        smoothing = self.phase.train.label_smoothing
        logits = outputs if isinstance(outputs, Tensor) else outputs.logits
        loss = cross_entropy(logits, labels, label_smoothing=smoothing)
        if self.teacher is not None:
            loss = self.teacher.mixed(loss, logits, images)
        if isinstance(outputs, Tensor):
            return loss, None
        auxiliary = cross_entropy(outputs.aux_logits, labels, label_smoothing=smoothing)
        return loss + AUXILIARY_SHARE * auxiliary, None

    def evaluate(self, model: nn.Module, device: torch.device) -> dict[str, float]:
        """Top-1 in percent and the mean cross-entropy."""
        right, loss, count = 0, 0.0, 0
        for batch in self.held_out_batches():
            images, labels = moved(batch, device)
            logits = model(images).float()
            right += int((logits.argmax(1) == labels).sum())
            loss += float(cross_entropy(logits, labels, reduction="sum"))
            count += len(labels)
        return {"top1": 100 * right / count, "loss": loss / count}

    def chance(self) -> float:
        """The share of the most frequent training class among the held-out images."""
        favourite = Counter(self.train.read.labels).most_common(1)[0][0]
        judged = self.held_out.read.labels[: self.phase.eval.limit]
        return 100 * judged.count(favourite) / len(judged)
