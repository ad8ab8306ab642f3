"""The talk's numbers with ours beside them: a csv, and the section of the page."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from workbench import dag, resolve
from workbench.files import write_text
from workbench.record import Record, RecordError, read
from workbench.report import collect, compare
from workbench.report.conv import conv_table
from workbench.report.gemm import gemm_table
from workbench.report.network_speed import claimed
from workbench.report.registry import ACCURACY, Printed, registry, rows_of
from workbench.report.render import RESULTS, grid
from workbench.report.wording import DASH, metric_title, number, signed, study_title

TIMED = {"gemm": gemm_table, "conv": conv_table}  # by the talk's table
Numbers = dict[str, dict[str, Any]]  # a row of a study by the talk's key of its network


@dataclass(frozen=True)
class Claim:
    """A printed number, ours in words, and why there is none."""

    printed: Printed
    ours: str
    reason: str = ""


def claims(scale: str, seeds: list[int], root: Path) -> list[Claim]:
    """Every number of the registry with what the records under `root` say of it."""
    accuracy = _numbers("accuracy", scale, seeds, root)
    shortened = _numbers("shortened_retraining", scale, seeds, root)
    found = []
    for printed in registry():
        if printed.table in ACCURACY:
            key = f"{printed.table}/{printed.row}"
            column = printed.quantity.replace("difference", "sparse").replace("dense_fp16", "dense")
            differs = printed.quantity.startswith("difference")
            found.append(_measured(printed, accuracy.get(key), column, differs))
        elif printed.table == "shortened_retraining":
            found.append(_shortened(printed, shortened, scale))
        elif printed.table == "statements":
            found.append(_stated(printed, scale, root))
        elif printed.table in TIMED:
            found.append(_timed(printed, root / scale / "measurements"))
        elif printed.table == "network_performance":
            found.append(Claim(printed, *claimed(printed, root / scale / "measurements")))
        else:
            found.append(Claim(printed, DASH, "not measured: no benchmark of this is recorded"))
    return found


def write(scale: str, root: Path = RESULTS) -> Path:
    """Write `tables/claims.csv` under `root/{scale}`: a row per printed number; its path."""
    found = claims(scale, dag.seeds({}, scale), root)
    rows = [asdict(each.printed) | {"ours": each.ours, "reason": each.reason} for each in found]
    path = root / scale / "tables" / "claims.csv"
    write_text(path, pd.DataFrame(rows).to_csv(index=False))
    return path


def section(scale: str, seeds: list[int], root: Path) -> str:
    """The html of the registry: differences that disagree with their own numbers, then all."""
    found = claims(scale, seeds, root)
    wrong = [each for each in found if each.printed.disagrees]
    header = ["Of", "Slide", "Number", "Printed", "From its numbers", "Ours"]
    every = grid([*header, "Why not ours"], [[*_cells(e), e.reason] for e in found], "claims")
    measured = sum(not each.reason for each in found)
    return (
        f'<section id="claims"><h2>{study_title("Every number that the talk prints", scale)}</h2>\n'
        f"<h3>{len(wrong)} printed differences disagree with the numbers that they are of</h3>\n"
        f"{grid(header, [_cells(each) for each in wrong], 'claims')}\n"
        '<ul class="notes"><li>Ours: on our data at this scale; differences in the metric\'s good '
        f"direction. {measured} of {len(found)} numbers have one.</li></ul>\n"
        f"<details><summary>All {len(found)} numbers</summary>{every}</details></section>"
    )


def _cells(claim: Claim) -> list[str]:
    of = claim.printed
    quantity = of.quantity.replace("_", " ")
    return [of.row, of.slide, quantity, of.printed, of.recomputed or DASH, claim.ours]


def _numbers(study: str, scale: str, seeds: list[int], root: Path) -> Numbers:
    plan, names = resolve.study(study), resolve.names("networks")
    frame = collect.frame(collect.records(dag.study_cells(study, scale, names, seeds), root), root)
    rows = [compare.numbers(plan, scale, n, frame) for n in dag.study_networks(study, names)]
    return {dag.spec_of(row["network"], "dense", scale).talk: row for row in rows}


def _measured(printed: Printed, row: dict[str, Any] | None, column: str, differs: bool) -> Claim:
    name = f"{column}_difference" if differs else column
    if row is None or row[name] != row[name]:
        return Claim(printed, DASH, "no record of these stages at this scale")
    metric = row["metric"]
    shown = signed(row[name], metric) if differs else number(row[name], metric)
    return Claim(printed, f"{shown} {metric_title(metric)}")


def _shortened(printed: Printed, numbers: Numbers, scale: str) -> Claim:
    row = next((r for key, r in numbers.items() if key.endswith(f"/{printed.row}")), None)
    if row is None:
        return Claim(printed, DASH, "no network of this name in the study shortened_retraining")
    share = {r["network"]: 100 * float(r["fine_tuning_fraction"]) for r in rows_of(printed.table)}
    train = dag.spec_of(row["network"], "dense", scale).phases["train"].train
    if printed.quantity == "baseline_epochs":
        return Claim(printed, train.length)
    columns = resolve.study("shortened_retraining").columns
    stage = "quantize" if printed.quantity.endswith("int8") else "retrain"
    for key, column in columns.items():
        spec = dag.spec_of(row["network"], column.treatment, scale)
        own = float(spec.treatment.retrain_length[:-1])
        if printed.quantity == "dense_fp16":
            return _measured(printed, row, "dense", False)
        if column.stage == stage and abs(own - share[printed.row]) < 0.1:
            if printed.quantity == "fine_tuning_epochs":
                return Claim(printed, spec.retrained("train").train.length)
            return _measured(printed, row, key, False)
    raise resolve.SpecError(
        f"studies/shortened_retraining.yaml: no column retrains for {share[printed.row]:.0f} % "
        f"as the talk's {printed.row}"
    )


def _timed(printed: Printed, measurements: Path) -> Claim:
    """Our speedup of the same product or convolution in fp16, on our device."""
    try:
        timed = TIMED[printed.table](measurements)
    except RecordError as error:
        return Claim(printed, DASH, f"no such measurement: {error}")
    sizes = dict(part.split("=") for part in printed.row.split())
    rows = timed.numbers[timed.numbers.dtype == "float16"]
    for size, value in sizes.items():
        rows = rows[rows[size.lower()] == int(value)]
    rows = rows[rows.speedup_vs_dense.notna()]
    if rows.empty:
        return Claim(printed, DASH, "this size is not among those that were measured")
    return Claim(printed, f"{rows.speedup_vs_dense.iloc[0]:.2f}x ({timed.title})")


def _stated(printed: Printed, scale: str, root: Path) -> Claim:
    """What is counted or recorded here of a number in the slides' text."""
    wanted = next(
        row["ours_from"]
        for row in rows_of("statements")
        if (row["slide"], row["subject"], row["quantity"])
        == (printed.slide, printed.row, printed.quantity)
    )
    kind, _, treatment = wanted.partition(":")
    if kind == "networks":
        return Claim(printed, str(len(dag.study_networks("accuracy", resolve.names("networks")))))
    if not kind:
        return Claim(printed, DASH, "a property of the format or of the device, not measured")
    for path in sorted((root / scale).glob(f"*/seed*/{treatment}/prune/record.json")):
        if share := _share(kind, read(path)):
            return Claim(printed, share)
    return Claim(printed, DASH, f"no record of {treatment}/prune that tells its storage")


def _share(kind: str, record: Record) -> str:
    """The zeros of the pruned layers, or their metadata against 16-bit values, in percent."""
    storage, layers = record.sparsity.get("storage"), record.sparsity.get("layers", [])
    pruned = [layer for layer in layers if not layer["reason"]]
    if not storage or not pruned:
        return ""
    kept, whole = (sum(layer[name] for layer in pruned) for name in ("nonzero", "weights"))
    if kind == "zeros":
        return f"{100 * (1 - kept / whole):.1f} %"
    return f"{100 * storage['metadata_bytes'] / (2 * kept):.1f} %"
