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
    divergences = np.concatenate([_divergences(bins, widths) for widths in _tried(len(bins) + 1)])
    return START + len(divergences) - 1 - int(np.argmin(divergences[::-1]))


def _divergences(bins: np.ndarray, widths: np.ndarray) -> np.ndarray:
    """For each width the divergence of its bins, what is clipped in the last, from its levels.

    A level's bins share its counts evenly if they are filled, so sums over bins are differences of
    running sums at the edges of levels.
    """
    edges = -(-np.arange(START + 1) * widths[:, None] // START)
    held, filled = _between(bins, edges), _between(bins > 0, edges)
    share = np.log(np.where(held > 0, held / np.maximum(filled, 1), 1.0))
    last, whole = bins[widths - 1], bins.sum()
    clipped = whole - held.sum(1)
    ended = last + clipped  # what is clipped ends in the last bin
    logs = _times_log(bins)
    p_log_p = np.cumsum(logs)[widths - 1] - logs[widths - 1] + _times_log(ended)
    p_log_q = (held * share).sum(1) + clipped * share[:, -1]
    divergence = (p_log_p - p_log_q) / whole - np.log(whole) + np.log(held.sum(1))
    return np.where((clipped > 0) & (last == 0), np.inf, divergence)


def _mse(counts: np.ndarray) -> float:
    """The center of a bin, in bins, at which rounding and clipping the centers errs least."""
    tried = _tried(len(counts))
    errors = np.concatenate([_squared_errors(counts, limits + 0.5) for limits in tried])
    return START + int(np.argmin(errors)) + 0.5


def _squared_errors(counts: np.ndarray, limits: np.ndarray) -> np.ndarray:
    """For each limit the error of all centers, from running sums at the edges of its 127 levels."""
    centers = np.arange(len(counts)) + 0.5
    levels = np.arange(LEVELS + 1)
    scales = limits[:, None] / LEVELS
    # a center half way between two levels errs equally by either
    edges = np.ceil((levels[1:] - 0.5) * scales - 0.5).astype(int).clip(0, len(counts))
    ends = np.full((len(limits), 1), len(counts))
    edges = np.concatenate([np.zeros_like(ends), edges, ends], axis=1)
    rounded = levels * scales
    number, moment = _between(counts, edges), _between(counts * centers, edges)
    return (rounded * (rounded * number - 2 * moment)).sum(1) + (counts * centers**2).sum()


def _tried(stop: int) -> list[np.ndarray]:
    # in parts, which bound the memory of the tables over all levels
    return [np.arange(at, min(at + 2048, stop)) for at in range(START, stop, 2048)]


def _between(values: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """The sums of values between each edge and the next, of every row of edges."""
    running = np.concatenate([[0.0], np.cumsum(values, dtype=np.float64)])
    return np.diff(running[edges], axis=1)


def _times_log(values: np.ndarray) -> np.ndarray:
    return values * np.log(np.where(values > 0, values, 1.0))
