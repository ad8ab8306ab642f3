"""The talk's printed numbers, looked up by the `talk` key of a network: file stem / network."""

import csv
from typing import Any

from workbench.resolve import EXPERIMENTS, SpecError, nearest

PRINTED = ("dense_fp16", "sparse_fp16", "sparse_int8")


def printed(key: str | None, table: str | None = None) -> dict[str, Any]:
    """Values, and differences to dense in the metric's good direction; empty without a key.

    `table` is another of the talk's tables in which the network's row is looked up.
    """
    if key is None:
        return {}
    stem, _, network = key.partition("/")
    found = _find(table or stem, network)
    sign = 1 if found["higher_is_better"] == "yes" else -1
    values = {name: float(found[name]) for name in PRINTED if found[name]}
    differences = {
        f"{name}_difference": sign * (value - values["dense_fp16"])
        for name, value in values.items()
        if name != "dense_fp16"
    }
    described = {"data": found["dataset"], "metric": found["metric"]}
    if "fine_tuning_epochs" in found:
        described["epochs"] = f"{found['fine_tuning_epochs']} of {found['baseline_epochs']}"
    return values | differences | described


def _find(stem: str, network: str) -> dict[str, str]:
    path = EXPERIMENTS / "talk" / f"{stem}.csv"
    if not path.exists():
        known = sorted(file.stem for file in path.parent.glob("*.csv"))
        raise SpecError(
            f"talk: {stem}/{network}: no table {stem}.csv in experiments/talk; "
            f"known: {', '.join(known)}"
        )
    with path.open(newline="") as file:
        rows = {row["network"]: row for row in csv.DictReader(file)}
    if network not in rows:
        raise SpecError(
            f"talk: {stem}/{network}: {path.name} has no row of {network!r}"
            f"{nearest(network, list(rows))}; known: {', '.join(rows)}"
        )
    return rows[network]
