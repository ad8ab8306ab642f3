"""The part of the page about one network: scores, curves, schedule, density, integers."""

from collections import Counter
from html import escape
from typing import Any

from workbench import dag
from workbench.report import compare, figures
from workbench.report.network import Network
from workbench.report.render import grid
from workbench.report.wording import arrow, column_title, metric_title


def section(network: Network) -> str:
    """The html of a network; without records it says so."""
    spec = dag.spec_of(network.name, "dense", network.scale)
    tasks = ", then ".join(
        f"{phase.task.replace('_', ' ')} on {phase.data.name}" for phase in spec.phases.values()
    )
    head = (
        f'<section id="{network.name}"><h2>{escape(spec.title)}</h2>\n<p class="lead">'
        f'{escape(tasks)}. <span class="muted">{escape(spec.source)}</span></p>'
    )
    parts = [
        _training(network),
        _schedule(network),
        _density(network),
        _integers(network),
        _errors(network),
    ]
    if not any(network.records(column) for column in network.columns.values()):
        parts = ['<p class="muted">No record at this scale yet.</p>']
    return "\n".join([head, *(part for part in parts if part), "</section>"])


def _training(network: Network) -> str:
    panels = [_scores(network)]
    lines = {
        key: network.curves(column)
        for key, column in network.columns.items()
        if column.stage in ("dense", "retrain")
    }
    phases = dict.fromkeys(phase for runs in lines.values() for run in runs for phase in run)
    for phase in phases:
        drawn = []
        for key, runs in lines.items():
            repeats = [_series(run[phase], "loss") for run in runs if phase in run]
            if repeats:
                drawn.append((column_title(key), network.color(network.columns[key]), repeats))
        panels.append(figures.curves(f"phase {phase}", drawn))
    shown = "".join(f'<div class="panel">{panel}</div>' for panel in panels if panel)
    if not shown:
        return ""
    return _figure(
        "Scores and training curves",
        f'<div class="panels">{shown}</div>',
        "Each dot and each line is one seed. Losses are means between logged steps; "
        "retraining starts from the pruned weights.",
    )


def _scores(network: Network) -> str:
    base = network.records(network.columns[compare.baseline(network.columns)])
    if not base:
        return ""
    metric, phase = base[0].primary, base[0].primary.partition("/")[0]
    rows = []
    for key, column in network.columns.items():
        scored = [r.metrics[metric] for r in network.records(column) if metric in r.metrics]
        if scored:
            rows.append((column_title(key), network.color(column), scored))
    title = f"{metric_title(metric)} {arrow(base[0].higher_is_better)}"
    return figures.scores(title, rows, base[0].metrics.get(f"{phase}/chance"))


def _schedule(network: Network) -> str:
    dense = network.curves(network.columns[compare.baseline(network.columns)])
    keys = compare.sparse(network.columns, network.name, network.scale)
    again = [run for key in keys for run in network.curves(network.columns[key])]
    if not dense or not again:
        return ""
    parts = [
        [(phase, _series(rows, "lr")) for phase, rows in runs[0].items()] for runs in (dense, again)
    ]
    start = dag.spec_of(network.name, "dense", network.scale).repeat_from
    return _figure(
        "The recipe in three steps",
        f'<div class="wide">{figures.schedule(*parts)}</div>',
        "Learning rate as it was used. Pruning takes the dense weights as they are at the end of "
        f"phase {escape(start)}; step 3 repeats the schedule from that phase on. Short phases are "
        "drawn wider than their share.",
    )


def _density(network: Network) -> str:
    parts = []
    for key, column in network.columns.items():
        records = network.records(column) if column.stage == "prune" else []
        layers = records[0].sparsity.get("layers", []) if records else []
        if layers:
            parts.append(
                _figure(
                    f"Density per layer: {column_title(key)}, {column.treatment}",
                    f'<div class="wide">{figures.density(layers)}</div>{_layers(layers)}',
                    _density_text(records[0].sparsity.get("summary", {}), layers),
                )
            )
    return "\n".join(parts)


def _density_text(summary: dict[str, Any], layers: list[dict[str, Any]]) -> str:
    text = ""
    if summary:
        share = 100 * summary["nonzero"] / summary["weights"]
        size = summary["compressed_bytes"] / summary["dense_bytes"]
        text = (
            f"{share:.1f}% of {summary['weights']:,} weights are not zero; compressed, the "
            f"network takes {100 * size:.0f}% of its dense size. "
        )
    reasons = Counter(layer["reason"] for layer in layers if layer["reason"])
    kept = "; ".join(f"{count} × {reason}" for reason, count in reasons.most_common())
    return text + (f"Kept dense: {escape(kept)}." if kept else "No layer was kept dense.")


def _layers(layers: list[dict[str, Any]]) -> str:
    rows = [
        [
            layer["layer"],
            "×".join(str(size) for size in layer["shape"]),
            f"{layer['weights']:,}",
            f"{layer['density']:.3f}",
            "yes" if layer["is_2to4"] else "no",
            layer["reason"],
        ]
        for layer in layers
    ]
    header = ["Layer", "Shape", "Weights", "Density", "Is 2:4", "Why dense"]
    table = grid(header, rows, "layers")
    return f"<details><summary>All {len(layers)} layers</summary>{table}</details>"


def _integers(network: Network) -> str:
    rows = []
    for key, column in network.columns.items():
        for record in network.records(column):
            counts = record.sparsity.get("integers")
            if counts:
                rows.append(
                    [
                        f"{column_title(key)}, seed {record.cell.seed}",
                        *(f"{counts[name]:,}" for name in _COUNTS),
                    ]
                )
    if not rows:
        return ""
    return _figure(
        "Zeros in the integers",
        grid(["Network", *_COUNTS.values()], rows),
        "Symmetric quantization maps zero to zero: every pruned weight has to be the "
        "integer 0. Rounding adds zeros of its own.",
    )


def _errors(network: Network) -> str:
    """The layers whose outputs INT8 changes most, and those that raise the loss most alone."""
    rows = []
    for key, column in network.columns.items():
        for record in network.records(column):
            errors = record.sparsity.get("errors", {})
            worst = sorted(errors, key=errors.get, reverse=True)[:_SHOWN]
            raised = record.sparsity.get("sensitivity", [])[:_SHOWN]
            if worst:
                rows.append(
                    [
                        f"{column_title(key)}, seed {record.cell.seed}",
                        ", ".join(f"{name} {100 * errors[name]:.1f}%" for name in worst),
                        ", ".join(f"{r['layer']} {r['loss_increase']:+.3g}" for r in raised),
                    ]
                )
    if not rows:
        return ""
    return _figure(
        "Error of INT8 by layer",
        grid(["Network", "Largest errors", "Largest increases of the loss"], rows),
        "Error: the norm of what rounding changes in an output over the norm of the output, all "
        "else exact. Increase: of the training loss with only this layer in INT8, where asked for.",
    )


_SHOWN = 5
_COUNTS = {
    "pruned_weights": "Pruned weights",
    "pruned_not_zero": "Of them not 0",
    "zeros_from_rounding": "Other zeros, by rounding",
    "layers_masked": "Layers with a mask",
    "layers_2to4": "Of them 2:4",
}


def _figure(title: str, body: str, caption: str) -> str:
    return f"<figure><h3>{escape(title)}</h3>{body}<figcaption>{caption}</figcaption></figure>"


def _series(rows: list[dict[str, Any]], name: str) -> figures.Curve:
    return [row["step"] for row in rows], [row[name] for row in rows]
