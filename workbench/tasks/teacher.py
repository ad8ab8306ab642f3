"""Distillation: the loss of a network that learns what another, trained one says."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import kl_div, log_softmax


@dataclass(frozen=True)
class Teacher:
    """A trained network in eval mode, and how another learns from it (compression.Distill)."""

    model: nn.Module
    weight: float
    temperature: float

    def mixed(self, loss: Tensor, logits: Tensor, given: Tensor) -> Tensor:
        """The student's loss (scalar) and the divergence of its logits [batch, classes].

        `given` is what both networks were given. The divergence is of the teacher's distribution
        from the student's, the mean over the batch.
        """
        heat, weight = self.temperature, self.weight
        with torch.no_grad():
            said = self.model(given)
        student, teacher = (log_softmax(each.float() / heat, -1) for each in (logits, said))
        divergence = kl_div(student, teacher, reduction="batchmean", log_target=True)
        return (1 - weight) * loss + weight * heat**2 * divergence
