"""The time of a product, dense and 2:4: measured, interpolated between records, or a roofline."""

import math
from dataclasses import dataclass
from typing import NamedTuple

from workbench.predict.devices import BYTES, Device
from workbench.predict.records import LIBRARY, OURS_DENSE, SPARSE, Records, Times
from workbench.predict.shapes import Product

SOURCES = ("measured", "interpolated", "roofline")
# features x tokens, as kernels have them; the first reaches the rate, others as reads of shared
# memory let them
TILES = ((256, 128), (128, 256), (128, 128), (128, 64), (64, 128), (64, 64), (64, 16))
PACKED = {"fp16": 0.5625, "int8": 0.625, "fp8": 0.625}  # bytes of a packed weight, of the dense


class Estimate(NamedTuple):
    """Microseconds of a product by the fastest dense library, by ours dense and by 2:4."""

    library: float
    ours_dense: float
    sparse: float
    source: str

    @property
    def dense(self) -> float:
        """The faster dense one."""
        return min(self.library, self.ours_dense)


@dataclass(frozen=True)
class Timetable:
    """What a device needs for products of a precision."""

    device: Device
    precision: str
    records: Records

    def product(self, product: Product) -> Estimate:
        """Its times; those that its records lack are of the roofline, and it is then called so."""
        known, source = self.records.exact(product), "measured"
        if known is None:
            known, source = self.records.between(product), "interpolated"
        if not known or not known.keys() & {LIBRARY, OURS_DENSE} or SPARSE not in known:
            return self.roofline(product)
        best = min(known[kind] for kind in (LIBRARY, OURS_DENSE) if kind in known)
        return Estimate(
            known.get(LIBRARY, best), known.get(OURS_DENSE, best), known[SPARSE], source
        )

    def roofline(self, product: Product) -> Estimate:
        """The longer of operations by the rate, in whole waves of tiles, and bytes by bandwidth."""
        rate = self.rates()
        element = BYTES[self.precision] if product.module else 2  # others stay in FP16
        moved = sum(node.size for node in product.reads) * element
        moved += (product.writes.size if product.writes else product.m * product.n) * 2
        saved = product.weights * element * (1 - PACKED[self.precision])
        dense = self._roof(product, rate["dense"], moved)
        return Estimate(
            dense, dense, self._roof(product, rate["sparse"], moved - saved), "roofline"
        )

    def rates(self) -> dict[str, float]:
        """TFLOP/s of large products, from records where there are some, else from the file."""
        given, best = self.device.rate(self.precision), self.records.best
        measured = max(best.get(LIBRARY, 0.0), best.get(OURS_DENSE, 0.0))
        return {"dense": measured or given.dense, "sparse": best.get(SPARSE) or given.sparse}

    def _roof(self, product: Product, rate: float, moved: float) -> float:
        device = self.device
        if product.shape is not None and product.count > 1 and product.wide is None:
            return device.launch_us + self.moving(moved, cold=True)  # depthwise: bytes decide
        m, k, count = product.m, product.k, product.count
        if product.wide and not product.reason:  # libraries lay narrow groups side by side too
            m, k, count = product.wide
        per_unit = rate * 1e6 / device.multiprocessors  # operations a microsecond
        best = math.inf
        for rows, tokens in TILES:
            share = min(1.0, _intensity(rows, tokens) / _intensity(*TILES[0]))
            tiles = math.ceil(m / rows) * math.ceil(product.n / tokens) * count
            waves = math.ceil(tiles / device.multiprocessors)
            clocks = device.tile_clocks + rows * tokens * 2 / device.shared_bytes
            overhead = clocks / device.clock_ghz / 1e3  # microseconds a tile
            best = min(best, waves * (2.0 * rows * tokens * k / per_unit / share + overhead))
        return device.launch_us + max(best, self.moving(moved, cold=True))

    def moving(self, size: float, cold: bool = False) -> float:
        """Microseconds to move bytes: by the L2 where half of it holds them, unless `cold`."""
        device = self.device
        warm = not cold and size < device.l2_mb * 1e6 / 2
        return size / (device.l2_tb if warm else device.memory_tb) / 1e6 / device.memory_share

    def errors(self) -> list[tuple[float, float]]:
        """For each measured matrix: the roofline's error of its dense time and of its speedup."""
        found = []
        for (m, k), sizes in self.records.matrices.items():
            for n, times in sizes.items():
                found += self._error(Product(m, n, k, module=True), times)
        return found

    def _error(self, product: Product, times: Times) -> list[tuple[float, float]]:
        dense = [times[kind] for kind in (LIBRARY, OURS_DENSE) if kind in times]
        if not dense or SPARSE not in times:
            return []
        element = BYTES[self.precision]
        size = (product.m + product.n) * product.k * element + product.m * product.n * 2
        rate = self.rates()
        ours = [self._roof(product, rate[kind], size) for kind in ("dense", "sparse")]
        speedup = (ours[0] / ours[1]) / (min(dense) / times[SPARSE])
        return [(ours[0] / min(dense) - 1, speedup - 1)]


def _intensity(rows: int, tokens: int) -> float:
    return rows * tokens / (rows + tokens)
