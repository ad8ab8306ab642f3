"""Calibration: observers on the activations of every INT8 operation, and their ranges."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

from torch import Tensor, nn

from workbench.quant.intercept import Interception
from workbench.quant.layers import QuantError
from workbench.quant.observe import Histogram

ONE = 1.0  # no magnitude is larger: tanh times a sigmoid, or a softmax


class Settings(Protocol):
    """What calibration needs of a spec's `quantize` section."""

    calibrator: str
    percentile: float
    keep_fp16: tuple[str, ...]
    attention: bool
    adds: bool


class Observing(Interception):
    """Histograms of what every INT8 operation gets, while the block runs the model."""

    def __init__(self, model: nn.Module, settings: Settings) -> None:
        """`keep_fp16` names layers that stay as they are; an unknown name is refused."""
        super().__init__(model, settings)
        if unknown := set(settings.keep_fp16) - set(self.layers):
            raise QuantError(
                f"quantize.keep_fp16 names {sorted(unknown)}; the layers are "
                f"{', '.join(self.layers)}"
            )
        self.settings = settings
        self.bounded: set[str] = set()
        self.seen = {
            name: Histogram(name) for name in self.layers if name not in settings.keep_fp16
        }

    def activation(self, site: str, values: Tensor) -> Tensor:
        """The values, once they are counted."""
        if site not in self.layers:
            self.seen.setdefault(site, Histogram(site))
        if site in self.seen:
            self.seen[site].see(values)
        return values

    def recurrent(self, name: str, kind: str, call: Callable[..., Any], arguments: tuple) -> Any:
        """The layer's outputs; its hidden states lie in [-1, 1] and need no counting."""
        self.activation(name, arguments[0])
        if name in self.seen:
            self.bounded.add(f"{name}.hidden")
        return call(*arguments)

    def attention(self, site: str, call: Callable[..., Tensor], arguments: dict) -> Tensor:
        """The attention's output; its weights lie in [0, 1] and need no counting."""
        for operand in ("query", "key", "value"):
            self.activation(f"{site}.{operand}", arguments[operand])
        self.bounded.add(f"{site}.weights")
        return call(**arguments)

    def ranges(self, calibrator: str | None = None) -> dict[str, float]:
        """The magnitude of each activation that becomes 127; what saw nothing is refused."""
        return ranges(self.seen, self.settings, calibrator) | dict.fromkeys(self.bounded, ONE)


def ranges(
    seen: Mapping[str, Histogram], settings: Settings, calibrator: str | None = None
) -> dict[str, float]:
    """The range of each histogram, by the settings' calibrator or another."""
    if seen and all(histogram.largest < 0 for histogram in seen.values()):
        raise QuantError(
            "no calibration data: none of the layers saw an activation; run the model on at least "
            "one batch, and give quantize.batches of at least 1"
        )
    _refuse("no activation was seen", [n for n, h in seen.items() if h.largest < 0])
    _refuse("only zeros were seen", [n for n, h in seen.items() if h.largest == 0])
    chosen = calibrator or settings.calibrator
    return {name: h.limit(chosen, settings.percentile) for name, h in seen.items()}


def _refuse(what: str, sites: Iterable[str]) -> None:
    if sites := list(sites):
        raise QuantError(
            f"{what} at {', '.join(sites)}; give more calibration batches, or name the layers in "
            "quantize.keep_fp16"
        )
