"""Ranges by calibration: each definition against a plain transcription, and named errors."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.stats import entropy
from torch import nn

from workbench import quant
from workbench.quant.observe import BINS, CALIBRATORS, START, Histogram

SETTINGS = SimpleNamespace(
    calibrator="max", percentile=99.99, keep_fp16=(), attention=False, adds=False
)


def histogram_of(*tensors: torch.Tensor) -> Histogram:
    histogram = Histogram("here")
    for values in tensors:
        histogram.see(values)
    return histogram


@pytest.fixture(scope="module")
def seen() -> Histogram:
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(3000, generator=generator).relu()
    return histogram_of(values, 1.03 * values)


def test_a_larger_value_appends_bins_and_moves_none() -> None:
    histogram = histogram_of(torch.linspace(0, 1, 1001))
    before = histogram.counts.clone()
    histogram.see(torch.tensor([1.5]))
    # a width of 1 / 2048: 1.5 is the upper edge of the last of 3072 bins
    assert len(histogram.counts) == 3072 and histogram.counts[-1] == 1
    assert torch.equal(histogram.counts[:BINS], before)
    assert histogram.counts.sum() == 1002
    assert histogram.limit("max") == 1.5


def test_more_values_than_fp32_counts_are_counted() -> None:
    values = torch.zeros(2**24 + 8)
    values[0] = 1
    assert histogram_of(values).counts.sum() == 2**24 + 8


def test_a_percentile_ignores_rare_outliers_and_the_maximum_does_not() -> None:
    histogram = histogram_of(torch.linspace(0, 1, 100_000), torch.tensor([50.0]))
    assert histogram.limit("percentile", 99.9) == pytest.approx(0.999, abs=1 / BINS)
    assert histogram.limit("percentile", 100.0) == pytest.approx(50, abs=2 / BINS)
    assert histogram.limit("max") == 50


def test_entropy_is_the_published_search(seen: Histogram) -> None:
    bins = seen.counts.numpy().copy()
    bins[0] = bins[1]
    divergences = []
    for width in range(START, len(bins) + 1):  # as pytorch-quantization: digitize, merge, compare
        level = np.digitize(range(width), np.linspace(0, width, num=129)) - 1
        level[bins[:width] == 0] = -1
        quantized = np.zeros(width)
        for one in set(level) - {-1}:
            quantized[level == one] = bins[:width][level == one].mean()
        reference = bins[:width].copy()
        reference[-1] += bins[width:].sum()
        divergences.append(entropy(reference, quantized))
    last = len(divergences) - 1 - int(np.argmin(divergences[::-1]))
    assert seen.limit("entropy") == pytest.approx((last + START) * seen.width)


def test_mse_is_the_published_search(seen: Histogram) -> None:
    counts = seen.counts.numpy()
    centers = (np.arange(len(counts)) + 0.5) * seen.width
    errors = [
        np.mean(
            counts
            * (np.clip(np.round(centers * 127 / amax), -127, 127) * amax / 127 - centers) ** 2
        )
        for amax in centers[START:]
    ]
    assert seen.limit("mse") == pytest.approx(centers[START + int(np.argmin(errors))])


def test_broken_activations_are_refused_by_every_calibrator() -> None:
    for bad in (float("nan"), float("inf")):
        with pytest.raises(quant.QuantError, match="here: an activation is NaN or infinite"):
            histogram_of(torch.tensor([1.0, bad]))
    for calibrator in CALIBRATORS:
        with pytest.raises(quant.QuantError, match="here: nothing was observed"):
            Histogram("here").limit(calibrator)
        with pytest.raises(quant.QuantError, match="here: only zeros were observed"):
            histogram_of(torch.zeros(3)).limit(calibrator)


def test_ranges_without_data_or_of_zeros_are_refused_by_name() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4))
    with quant.Observing(model, SETTINGS) as observed:
        pass
    with pytest.raises(quant.QuantError, match="no calibration data"):
        observed.ranges()
    with quant.Observing(model, SETTINGS) as observed:
        model[1](torch.zeros(2, 4))
    with pytest.raises(quant.QuantError, match="no activation was seen at 0, 2; give more"):
        observed.ranges()
    with observed:
        model[0](torch.ones(2, 4)), model[2](torch.ones(2, 4))
    with pytest.raises(quant.QuantError, match="only zeros were seen at 1; give more"):
        observed.ranges()
    unknown = SimpleNamespace(**vars(SETTINGS) | {"keep_fp16": ("head",)})
    with pytest.raises(quant.QuantError, match="names \\['head'\\]"):
        quant.Observing(model, unknown)
