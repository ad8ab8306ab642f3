"""The measured times of products, looked up by shape; from workbench bench's records alone."""

import json
import math
from bisect import bisect
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from workbench.predict.devices import PRECISIONS, Device
from workbench.predict.shapes import Convolution, Product
from workbench.record import RecordError

LIBRARY, OURS_DENSE, SPARSE = "library", "ours dense", "sparse"
# what the benchmarks call our kernels and cuSPARSELt; every other name is a dense library
_NAMES = {"sparse24": SPARSE, "cusparselt": SPARSE, "sparse24 dense mode": OURS_DENSE}
_LEFT_OUT = ("sparse24 untuned", "torch._int_mm, int32 sums")  # not the best, not the same result
Times = dict[str, float]  # microseconds by LIBRARY, OURS_DENSE, SPARSE; some may be absent


@dataclass(frozen=True)
class Records:
    """Times by shape, the same for sizes of one weight by tokens, and how fast products get."""

    files: tuple[str, ...] = ()
    matrices: dict[tuple[int, int], dict[int, Times]] = field(default_factory=dict)
    convolutions: dict[Convolution, Times] = field(default_factory=dict)
    best: Times = field(default_factory=dict)  # TFLOP/s

    def exact(self, product: Product) -> Times | None:
        """The times of a product that was measured, or None."""
        if product.shape is not None and product.shape in self.convolutions:
            return self.convolutions[product.shape]
        return self.sizes(product).get(product.n)

    def between(self, product: Product) -> Times | None:
        """The times between two measured numbers of tokens of the same weight, or None."""
        sizes = self.sizes(product)
        counts = sorted(sizes)
        place = bisect(counts, product.n)
        if not 0 < place < len(counts):
            return None
        low, high = counts[place - 1], counts[place]
        share = math.log(product.n / low) / math.log(high / low)
        found = sizes[low].keys() & sizes[high].keys()
        return {
            name: sizes[low][name] ** (1 - share) * sizes[high][name] ** share for name in found
        }

    def sizes(self, product: Product) -> dict[int, Times]:
        """The measured numbers of tokens of a plain product's weight, with their times."""
        shape = product.shape
        plain = shape is None or (
            shape.kernel == shape.stride == (1, 1) and shape.padding == (0, 0)
        )
        if not plain or product.count > 1:
            return {}
        return self.matrices.get((product.m, product.k), {})


def read(folder: Path, device: Device, precision: str) -> Records:
    """The records of a device's kind and a precision under a folder; none of them is fine."""
    made = Records()
    files: list[str] = []
    dtype = PRECISIONS[precision]
    for name in ("gemm", "conv", "throughput"):
        told = _told(folder / f"{name}.json")
        if told is None or not told["facts"]["device"].startswith(device.records):
            continue
        rows = list(_rates(told) if name == "throughput" else _times(told, name, dtype))
        if name == "throughput":
            rows = [(flops, times) for kind, flops, times in rows if kind == precision]
        files += [f"{name}.json"] if rows else []
        for key, times in rows:
            _put(made, name, key, times)
    return Records(tuple(files), made.matrices, made.convolutions, made.best)


def _put(made: Records, name: str, key: Any, times: Times) -> None:
    flops = key
    if name == "gemm":
        m, n, k = key
        made.matrices.setdefault((m, k), {})[n] = times
        flops = 2.0 * m * n * k
    elif name == "conv":
        made.convolutions[key] = times
        return  # their rates are products' at best
    for kind, microseconds in times.items():
        made.best[kind] = max(made.best.get(kind, 0.0), flops / microseconds / 1e6)


def _times(told: dict[str, Any], name: str, dtype: str) -> Iterator[tuple[Any, Times]]:
    for row in told["rows"]:
        if row["dtype"] != dtype:
            continue
        times: Times = {}
        for label, found in row["found"].items():
            if "median_us" in found and label not in _LEFT_OUT:
                kind = _NAMES.get(label, LIBRARY)
                times[kind] = min(found["median_us"], times.get(kind, math.inf))
        if name == "gemm":
            yield (row["m"], row["n"], row["k"]), times
        else:
            yield _convolution(row), times


def _convolution(row: dict[str, Any]) -> Convolution:
    n, c, k, h, w, r, s, stride, padding, groups = (
        row[name] for name in ("n", "c", "k", "h", "w", "r", "s", "stride", "padding", "groups")
    )
    pairs = (stride, stride), (padding, padding), (1, 1)
    return Convolution(n, c, k, h, w, (r, s), *pairs, groups)


def _rates(told: dict[str, Any]) -> Iterator[tuple[str, float, Times]]:
    """Of the table of throughput: microseconds of one TFLOP, which `best` turns back."""
    kinds = {"FP16": "fp16", "INT8": "int8", "E4M3": "fp8"}
    for row in told["rows"]:
        if row["input_operands"] not in kinds or row["accumulator"] == "FP16":
            continue
        rates = {LIBRARY: row["dense_tops"], SPARSE: row["sparse_tops"]}
        times = {kind: 1e6 / rate for kind, rate in rates.items() if rate}
        yield kinds[row["input_operands"]], 1e12, times


def _told(path: Path) -> dict[str, Any] | None:
    if not path.exists():
        return None
    try:
        return json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise RecordError(f"{path}: not JSON ({error}); remove it and measure again") from error
