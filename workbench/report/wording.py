"""How numbers, metrics and columns are worded: decimals, arrows, signs and titles."""

import math

from workbench import resolve

DASH = "–"
PLUMBING = "plumbing check, not a result"
METRICS = {
    "top1": "top-1 %",
    "box_ap": "box AP",
    "mask_ap": "mask AP",
    "proposal_ar": "proposal AR",
    "bleu": "BLEU",
    "loss_bits": "validation loss, bits",
    "f1": "F1",
}


def caveat(scale: str) -> str:
    """What has to be said of a scale: one that shrinks the networks checks the plumbing."""
    model = resolve.read_yaml(resolve.known("scales", scale)).get("network", {}).get("model", {})
    return PLUMBING if min(model.get("width", 1), model.get("depth", 1)) < 1 else ""


def study_title(title: str, scale: str) -> str:
    """The title of a study, its scale, and what has to be said of it."""
    return f"{title}, scale {scale}" + (f": {caveat(scale)}" if caveat(scale) else "")


def column_title(key: str) -> str:
    """`sparse_int8` as `Sparse INT8`."""
    words = [word.upper() if word in ("fp16", "int8") else word for word in key.split("_")]
    text = " ".join(words)
    return text[0].upper() + text[1:]


def metric_name(metric: str) -> str:
    """The name of a metric without its phase."""
    return metric.rpartition("/")[2]


def metric_title(metric: str) -> str:
    """The name of a metric without its phase, as the talk writes it."""
    name = metric_name(metric)
    return METRICS.get(name, name.replace("_", " "))


def arrow(higher_is_better: bool) -> str:
    """Which way is better."""
    return "↑" if higher_is_better else "↓"


def decimals_of(metric: str) -> int:
    """One decimal for percentages and BLEU, three for losses and bits."""
    return 3 if any(word in metric for word in ("loss", "bits", "perplexity")) else 1


def number(value: float, metric: str) -> str:
    """A value of a metric, or a dash."""
    return DASH if math.isnan(value) else f"{value:.{decimals_of(metric)}f}".replace("-", "−")


def signed(change: float, metric: str = "", decimals: int | None = None) -> str:
    """A difference with its sign; one that rounds to nothing has none."""
    places = decimals_of(metric) if decimals is None else decimals
    rounded = round(change, places) + 0.0  # -0.0 is 0.0
    return f"{rounded:+.{places}f}".replace("-", "−") if rounded else f"{rounded:.{places}f}"


def interval(low: float, high: float, metric: str) -> str:
    """An interval of a difference, `[−0.5, +0.1]`, or nothing."""
    return f"[{signed(low, metric)}, {signed(high, metric)}]" if low == low else ""


def duration(seconds: float) -> str:
    """Seconds, minutes or hours, whichever is read best."""
    for unit, size in (("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"
