"""Observers of activations: the largest magnitude, or a percentile of a growing histogram."""

import torch
from torch import Tensor

BINS = 2048


class QuantError(ValueError):
    """Activations or weights from which no INT8 range can be chosen."""


class Max:
    """The largest magnitude seen."""

    def __init__(self) -> None:
        """Nothing seen yet."""
        self.largest: Tensor | None = None

    def see(self, values: Tensor) -> None:
        """Take in a tensor."""
        largest = values.detach().abs().max().float()
        self.largest = largest if self.largest is None else torch.maximum(self.largest, largest)

    def limit(self) -> float:
        """The magnitude that becomes 127."""
        return 0.0 if self.largest is None else float(self.largest)


class Percentile:
    """The magnitude below which a share of all values lies, from a histogram of |x|.

    2048 bins over the first tensor's range; larger values later append bins of the same width
    (the method of NVIDIA's pytorch-quantization).
    """

    def __init__(self, percentile: float) -> None:
        """`percentile` in (0, 100]."""
        self.percentile = percentile
        self.width = 0.0
        self.counts: Tensor | None = None

    def see(self, values: Tensor) -> None:
        """Take in a tensor."""
        magnitudes = values.detach().abs().flatten().float()
        largest = float(magnitudes.max())
        if largest != largest or largest == float("inf"):
            raise QuantError(
                "an activation is NaN or infinite during calibration; the network or "
                "its input is broken before quantization"
            )
        if not self.width:
            if not largest:
                return
            self.width = largest / BINS
            self.counts = torch.zeros(BINS, dtype=torch.float64, device=values.device)
        bins = max(len(self.counts), int(largest / self.width) + 1)
        counts = torch.histc(magnitudes, bins, 0, bins * self.width).double()
        counts[: len(self.counts)] += self.counts
        self.counts = counts

    def limit(self) -> float:
        """The upper edge of the bin in which the percentile falls."""
        if self.counts is None:
            return 0.0
        cumulative = self.counts.cumsum(0) / self.counts.sum()
        reached = int((cumulative < self.percentile / 100).sum())
        return (min(reached, len(self.counts) - 1) + 1) * self.width
