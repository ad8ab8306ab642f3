"""Observers of activations: a growing histogram of |x|, and the four ways to a range from it.

The definitions are those of NVIDIA's pytorch-quantization and its heir ModelOpt
(calib/histogram.py), with which users compare.
"""

import math

import numpy as np
import torch
from torch import Tensor

from workbench.quant.layers import LEVELS, QuantError

BINS = 2048
START = 128  # the narrowest range that entropy and mse try, in bins: one per level and zero
CALIBRATORS = ("max", "percentile", "entropy", "mse")


class Histogram:
    """Counts of |x| in 2048 bins over the first tensor's range, and the largest value.

    Larger values later append bins of the same width, so that nothing counted is moved.
    """

    def __init__(self, site: str = "activation") -> None:
        """Nothing seen yet; `site` is named in errors."""
        self.site = site
        self.largest = -1.0
        self.width = 0.0
        self.counts: Tensor | None = None

    def see(self, values: Tensor) -> None:
        """Take in a tensor."""
        magnitudes = values.detach().abs().flatten().float()
        largest = float(magnitudes.max())
        if not largest < float("inf"):
            raise QuantError(
                f"{self.site}: an activation is NaN or infinite during calibration; the network "
                "or its input is broken before quantization"
            )
        self.largest = max(self.largest, largest)
        if not self.width:
            if not largest:
                return
            self.width = largest / BINS
            self.counts = torch.zeros(BINS, dtype=torch.float64, device=values.device)
        bins = max(len(self.counts), math.ceil(largest / self.width))
        # histc counts in fp32, which stays at 2^24 when one is added
        parts = magnitudes.split(2**24)
        counts = sum(torch.histc(part, bins, 0, bins * self.width).double() for part in parts)
        counts[: len(self.counts)] += self.counts
        self.counts = counts

    def limit(self, calibrator: str, percentile: float = 99.99) -> float:
        """The magnitude that becomes 127, by one of CALIBRATORS."""
        if self.largest < 0:
            raise QuantError(f"{self.site}: nothing was observed; give calibration batches")
        if not self.largest:
            raise QuantError(f"{self.site}: only zeros were observed, which have no range")
        if calibrator == "max":
            return self.largest
        counts = self.counts.cpu().numpy()
        if calibrator == "percentile":
            return _percentile(counts, percentile) * self.width
        if calibrator == "entropy":
            return _entropy(counts) * self.width
        if calibrator == "mse":
            return _mse(counts) * self.width
        raise QuantError(f"calibrator {calibrator!r}: one of {', '.join(CALIBRATORS)} is allowed")


def _percentile(counts: np.ndarray, percentile: float) -> int:
    """The lower edge, in bins, of the bin in which the percentile falls; at least one bin."""
    cumulative = np.cumsum(counts / counts.sum())
    # the sum may end a rounding error below 1, and then a percentile of 100 lies past the end
    reached = min(int(np.searchsorted(cumulative, percentile / 100)), len(counts))
    return max(1, reached)


def _entropy(counts: np.ndarray) -> int:
    """The width in bins whose 128 levels diverge least (Kullback-Leibler); the last if several."""
    bins = counts.copy()
    bins[0] = bins[1]  # zeros, which ReLU makes many of, would outweigh all else
    above = bins.sum() - np.cumsum(bins)
    best, least = len(bins), np.inf
    for width in range(START, len(bins) + 1):
        kept = bins[:width]
        level = np.arange(width) * START // width
        filled = kept > 0
        total = np.bincount(level, kept, START)
        share = total / np.maximum(np.bincount(level, filled, START), 1)
        divergence = _divergence(kept, above[width - 1], np.where(filled, share[level], 0.0))
        if divergence <= least:
            best, least = width, divergence
    return best


def _divergence(kept: np.ndarray, clipped: float, quantized: np.ndarray) -> float:
    reference = kept.copy()
    reference[-1] += clipped  # what is clipped ends in the last bin
    if reference[-1] > 0 and not quantized[-1]:
        return np.inf
    held = reference > 0
    p = reference[held] / reference.sum()
    q = quantized[held] / quantized.sum()
    return float((p * np.log(p / q)).sum())


def _mse(counts: np.ndarray) -> float:
    """The centre of a bin, in bins, at which rounding and clipping the centres errs least."""
    centers = np.arange(len(counts)) + 0.5
    errors = []
    for limit in centers[START:]:
        scale = limit / LEVELS
        quantized = np.clip(np.rint(centers / scale), -LEVELS, LEVELS) * scale
        errors.append(((quantized - centers) ** 2 * counts).sum())
    return float(centers[START + int(np.argmin(errors))])
