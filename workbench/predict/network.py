"""A network's time on a device, dense and 2:4, before any training: layers, Amdahl, a verdict."""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from workbench.predict import records, trace
from workbench.predict.devices import Device, device
from workbench.predict.groups import Attention, Group, Node, Pass
from workbench.predict.shapes import Product
from workbench.predict.timing import SOURCES, Estimate, Timetable
from workbench.predict.trace import Trace
from workbench.workload import Workload

MARGIN = 0.02  # by which 2:4 must win for swap to take it, as sparse24's dispatch has it
ERROR = 0.10  # of a predicted speedup, that is aimed at; smaller gains are not promised


@dataclass(frozen=True)
class Layer:
    """A product of the network with its times in microseconds and what runs after swapping."""

    product: Product
    time: Estimate
    sparse: bool  # whether 2:4 runs: it can, and is faster

    @property
    def us(self) -> float:
        """Of the swapped network."""
        return self.time.sparse if self.sparse else self.time.dense


@dataclass(frozen=True)
class Parts:
    """Milliseconds of a pass: layers that 2:4 can take, other products, attention, the rest."""

    prunable: float
    other: float
    attention: float
    rest: float

    @property
    def total(self) -> float:
        """Of all."""
        return self.prunable + self.other + self.attention + self.rest


@dataclass(frozen=True)
class Prediction:
    """What to expect of a network at a batch on a device.

    `dense` is the strongest dense one, `compiled` by libraries and a compiler that fuses what lies
    between products, `eager` without fusion, `sparse` after swapping.
    """

    work: Workload
    device: Device
    precision: str
    batch: int
    layers: tuple[Layer, ...]
    dense: Parts
    compiled: Parts
    eager: Parts
    sparse: Parts
    files: tuple[str, ...] = ()
    errors: tuple[tuple[float, float], ...] = field(default=())

    @property
    def speedup(self) -> float:
        """Dense over sparse, of the whole network."""
        return self.dense.total / self.sparse.total

    @property
    def share(self) -> float:
        """Of the dense time, that of layers which 2:4 can take."""
        return self.dense.prunable / self.dense.total

    @property
    def layer_speedup(self) -> float:
        """Dense over sparse, of those layers alone; 1 where there are none."""
        return self.dense.prunable / self.sparse.prunable if self.sparse.prunable else 1.0

    @property
    def amdahl(self) -> float:
        """The network's speedup that follows from the two numbers before."""
        return 1 / (1 - self.share + self.share / self.layer_speedup)

    def sources(self) -> dict[str, float]:
        """The share of the sparse network's product time by where it came from."""
        total = sum(layer.us for layer in self.layers) or 1.0
        return {
            name: sum(layer.us for layer in self.layers if layer.time.source == name) / total
            for name in SOURCES
        }

    def verdict(self) -> str:
        """One sentence for one who must decide whether to prune."""
        gain = f"{self.speedup:.2f}x"
        if not any(layer.sparse for layer in self.layers):
            return "No faster: no layer gains from 2:4 here, so all stay dense; prune it for size."
        if self.speedup < 1 + MARGIN:
            return f"No faster: {gain}; prune it for size, not for speed."
        if self.speedup < 1 + ERROR:
            return f"Hardly faster: {gain}, within the {ERROR:.0%} that a prediction may be wrong."
        return f"Faster: {gain} expected of the whole network."


def predict(
    work: Workload,
    batch: int,
    device_name: str,
    precision: str,
    folder: Path,
    dense_groups: bool = False,
) -> Prediction:
    """The prediction of a workload; `folder` holds the measurements. SpecError if unknown.

    With `dense_groups` convolutions of several groups stay dense.
    """
    card = device(device_name)
    card.rate(precision)
    known, seen = records.read(folder, card, precision), trace.traced(work, batch)
    for product in seen.products if dense_groups else ():
        if product.shape is not None and product.shape.groups > 1:
            product.reason = product.reason or "several groups: kept dense by request"
    return of_trace(work, seen, batch, Timetable(card, precision, known))


def of_trace(work: Workload, seen: Trace, batch: int, table: Timetable) -> Prediction:
    """The prediction of what was traced by a timetable."""
    layers = tuple(_layer(product, table) for product in seen.products)
    attention = sum(_attended(each, table) for each in seen.attention) / 1e3
    fused = _moved((group for group in seen.groups if group.names and not group.folded), table)
    in_epilogues = sum(_grouped(group, table) for group in seen.groups) / 1e3
    unfused = _moved(seen.passes, table)

    def parts(rest: float, kind: str) -> Parts:
        sums = Counter[bool]()
        for layer in layers:
            times = {"sparse": layer.us, "dense": layer.time.dense, "library": layer.time.library}
            sums[not layer.product.reason] += times[kind] / 1e3
        return Parts(sums[True], sums[False], attention, rest)

    compiled, ours = parts(fused, "library"), parts(in_epilogues, "dense")
    return Prediction(
        work=work,
        device=table.device,
        precision=table.precision,
        batch=batch,
        layers=layers,
        dense=min(compiled, ours, key=lambda each: each.total),
        compiled=compiled,
        eager=parts(unfused, "library"),
        sparse=parts(in_epilogues, "sparse"),
        files=table.records.files,
        errors=tuple(table.errors()),
    )


def _layer(product: Product, table: Timetable) -> Layer:
    time = table.product(product) if not product.reason else _dense_only(product, table)
    faster = time.sparse * (1 + MARGIN) < time.dense
    return Layer(product, time, not product.reason and faster)


def _dense_only(product: Product, table: Timetable) -> Estimate:
    """Products of other tensors than weights stay in FP16."""
    if not product.module and table.precision != "fp16":
        table = Timetable(table.device, "fp16", records.Records())
    return table.product(product)


def _attended(each: Attention, table: Timetable) -> float:
    card = table.device
    rate = card.rate("fp16").dense * card.attention_share
    moved = table.moving(_bytes(each.reads, "fp16") + _bytes(each.writes, "fp16"))
    return card.launch_us + max(each.flops / rate / 1e6, moved)


def _moved(passes: Iterable[Pass | Group], table: Timetable) -> float:
    """Milliseconds of passes or groups, a kernel each."""
    return sum(_pass(each, table) for each in passes) / 1e3


def _pass(each: Pass | Group, table: Timetable) -> float:
    size = _bytes(each.reads, table.precision) + _bytes(each.writes, table.precision)
    if isinstance(each, Group) and each.behind is not None:  # then its reads leave out the sums
        size += max(node.size for node in each.writes) * _width(each.writes[0], table.precision)
    return table.device.launch_us + table.moving(size)


def _grouped(group: Group, table: Timetable) -> float:
    """Microseconds of a group where packed layers, dense or 2:4, have epilogues."""
    if not group.names or group.folded:
        return 0.0
    if group.behind is None or group.behind.reason:
        return _pass(group, table)
    return table.moving(_bytes(group.reads, table.precision))


def _bytes(nodes: Iterable[Node], precision: str) -> float:
    return float(sum(node.size * _width(node, precision) for node in nodes))


def _width(node: Node, precision: str) -> int:
    if not node.real:
        return 8
    return 1 if node.image and precision != "fp16" else 2


def by_shape(prediction: Prediction) -> Iterator[tuple[Layer, int]]:
    """The layers of different sizes or reasons, each with how often it occurs, in their order."""
    found: dict[tuple, list[Layer]] = {}
    for layer in prediction.layers:
        found.setdefault((str(layer.product), layer.product.reason), []).append(layer)
    for layers in found.values():
        yield layers[0], len(layers)
