"""A prediction as text: layers, where the time goes, Amdahl, what it rests on, the verdict."""

from collections.abc import Sequence
from dataclasses import asdict
from statistics import median
from typing import Any

from workbench.predict.network import ERROR, MARGIN, Layer, Parts, Prediction, by_shape

_KINDS = ("prunable", "other", "attention", "rest")
_TITLES = ("2:4 layers", "other products", "attention", "norms, element-wise, pooling")


def as_text(found: Prediction) -> str:
    """Everything for a person to read."""
    work = found.work
    head = (
        f"{work.title} on {found.device.title}, {found.precision}, batch {found.batch} of "
        f"{work.size}, before any training"
    )
    lines = [head, "", *_layers(found), "", *_split(found), "", *_amdahl(found), ""]
    lines += ["Assumed:", *(f"- {text}" for text in assumptions(found)), "", found.verdict()]
    return "\n".join(lines)


def as_lines(found: Sequence[Prediction]) -> str:
    """One line for each batch, then what they rest on."""
    first = found[0]
    lines = [
        f"{first.work.title} on {first.device.title}, {first.precision}, {first.work.size}, before "
        "any training",
        "",
        f"{'batch':>6}{'dense ms':>11}{'sparse ms':>11}{first.work.unit + ' a second':>25}"
        f"{'2:4 layers':>12}{'they gain':>11}{'network':>9}{'roofline':>10}  verdict",
    ]
    for each in found:
        lines.append(
            f"{each.batch:>6}{each.dense.total:>11.3f}{each.sparse.total:>11.3f}"
            f"{_rate(each, each.sparse):>25,.0f}{each.share:>12.0%}{each.layer_speedup:>10.2f}x"
            f"{each.speedup:>8.2f}x{each.sources()['roofline']:>10.0%}  {each.verdict()}"
        )
    shares = "The share of product time that is of the roofline stands in its column."
    texts = [shares, *assumptions(first)[1:]]
    return "\n".join([*lines, "", "Assumed:", *(f"- {text}" for text in texts)])


def as_data(found: Prediction) -> dict[str, Any]:
    """The same for machines; times in milliseconds, layers in microseconds."""
    return {
        "network": found.work.network,
        "device": found.device.title,
        "precision": found.precision,
        "batch": found.batch,
        "size": found.work.size,
        "layers": [_told(layer, count) for layer, count in by_shape(found)],
        **{name: asdict(getattr(found, name)) for name in ("dense", "compiled", "eager", "sparse")},
        "share": found.share,
        "layer_speedup": found.layer_speedup,
        "amdahl": found.amdahl,
        "speedup": found.speedup,
        "sources": found.sources(),
        "assumptions": assumptions(found),
        "verdict": found.verdict(),
    }


def assumptions(found: Prediction) -> list[str]:
    """What the numbers rest on, one sentence each."""
    card, texts = found.device, []
    shares = ", ".join(f"{name} {share:.0%}" for name, share in found.sources().items())
    texts.append(f"Time of products by origin: {shares}. Records: {_named(found.files)}.")
    texts.append(_checked(found))
    texts.append(
        f"Roofline: operations at the rate of large products, in whole waves of tiles over "
        f"{card.multiprocessors} multiprocessors, or bytes from memory at "
        f"{card.memory_share:.0%} of {card.memory_tb:g} TB/s; {card.launch_us:g} us a kernel, "
        "as in a CUDA graph (experiments/bench/devices.yaml)."
    )
    texts.append(
        "Attention is one fused kernel without a padding mask; it, norms and what is "
        "element-wise move bytes, through the L2 where half of it holds them."
    )
    texts.append(
        "Dense is the faster of libraries with a compiler that fuses all that lies between "
        "products, and of our kernels in dense mode, which like the 2:4 ones compute bias, "
        "activation and residual in their epilogue; batch norms are folded in both."
    )
    if found.precision != "fp16":
        texts.append(
            "8 bits: steps are known beforehand and rounding costs no pass of its own; images stay "
            "in 8 bits between layers, sequences come back in FP16."
        )
    texts.append(
        f"A layer runs 2:4 only where that is faster by more than {MARGIN:.0%}, so that no network "
        "becomes slower."
    )
    if found.work.left_out:
        texts.append(f"Left out: {found.work.left_out}.")
    return texts


def _layers(found: Prediction) -> list[str]:
    rows = [("layer", "times", "size", "dense us", "2:4 us", "gain", "runs", "from")]
    notes = {}
    for layer, count in by_shape(found):
        reason = layer.product.reason
        mark = f" [{notes.setdefault(reason, len(notes) + 1)}]" if reason else ""
        time = layer.time
        rows.append(
            (
                layer.product.name or "(no layer)", str(count), str(layer.product),
                f"{time.dense:.1f}", "-" if reason else f"{time.sparse:.1f}",
                "-" if reason else f"{time.dense / time.sparse:.2f}",
                ("2:4" if layer.sparse else "dense") + mark, time.source,
            )
        )  # fmt: skip
    widths = [max(len(row[place]) for row in rows) for place in range(len(rows[0]))]
    shown = [
        "  ".join(
            text.rjust(width) if 3 <= place <= 5 else text.ljust(width)
            for place, (text, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    return [*shown, *(f"[{number}] stays dense: {reason}" for reason, number in notes.items())]


def _split(found: Prediction) -> list[str]:
    lines = [f"{'ms':<30}{'dense':>10}{'share':>8}{'sparse':>10}"]
    for kind, title in zip(_KINDS, _TITLES, strict=True):
        before, after = getattr(found.dense, kind), getattr(found.sparse, kind)
        share = before / found.dense.total
        lines.append(f"{title:<30}{before:>10.3f}{share:>8.0%}{after:>10.3f}")
    lines.append(f"{'all':<30}{found.dense.total:>10.3f}{'':>8}{found.sparse.total:>10.3f}")
    lines.append(
        f"{found.work.unit + ' a second':<30}{_rate(found, found.dense):>10,.0f}{'':>8}"
        f"{_rate(found, found.sparse):>10,.0f}"
    )
    return lines


def _amdahl(found: Prediction) -> list[str]:
    p, s = found.share, found.layer_speedup
    rest = found.speedup / found.amdahl
    other = f", times {rest:.2f} by epilogues that replace passes" if abs(rest - 1) > 0.005 else ""
    return [
        f"Amdahl: {p:.0%} of the dense time gains {s:.2f}x: "
        f"1 / ({1 - p:.2f} + {p:.2f} / {s:.2f}) = {found.amdahl:.2f}x{other}",
        f"Against the strongest dense network {found.speedup:.2f}x; against libraries with fusion "
        f"{found.compiled.total / found.sparse.total:.2f}x ({found.compiled.total:.3f} ms), "
        f"without {found.eager.total / found.sparse.total:.2f}x ({found.eager.total:.3f} ms)",
    ]


def _checked(found: Prediction) -> str:
    if not found.errors:
        return f"No record of a product in {found.precision} on this device to check the roofline."
    dense, gains = zip(*found.errors, strict=True)
    return (
        f"The roofline against {len(dense)} measured products: median error {_percent(dense)}, of "
        f"the speedup {_percent(gains)}. The goal for networks is {ERROR:.0%}."
    )


def _percent(errors: tuple[float, ...]) -> str:
    sizes = [abs(error) for error in errors]
    return f"{median(sizes):.0%} (worst {max(sizes):.0%})"


def _named(files: tuple[str, ...]) -> str:
    return ", ".join(files) if files else "none of this device"


def _rate(found: Prediction, parts: Parts) -> float:
    return found.batch / parts.total * 1e3


def _told(layer: Layer, count: int) -> dict[str, Any]:
    return {
        "name": layer.product.name,
        "count": count,
        "size": str(layer.product),
        "dense_us": layer.time.dense,
        "sparse_us": None if layer.product.reason else layer.time.sparse,
        "runs": "2:4" if layer.sparse else "dense",
        "source": layer.time.source,
        "reason": layer.product.reason,
    }
