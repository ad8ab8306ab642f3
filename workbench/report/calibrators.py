"""The table of a network's calibrators: what INT8 costs by each, from records alone."""

from collections import defaultdict
from pathlib import Path

import pandas as pd

from workbench import dag
from workbench.record import Record, RecordError, read
from workbench.report.cells import Table, Text
from workbench.report.wording import arrow, metric_title, number, signed, study_title

BEFORE = "not quantized"


def calibrators(network: str, scale: str, root: Path) -> Table:
    """Rows: before INT8, then each calibrator that the quantize stages compared.

    A column per treatment, means over seeds; changes are to the row before INT8, of the same seeds.
    """
    paths = sorted((root / scale / network).glob("seed*/*/quantize/record.json"))
    records = [record for record in map(read, paths) if record.sparsity.get("calibrators")]
    if not records:
        raise RecordError(
            f"{root / scale / network}: no record that compares calibrators; name some in "
            "quantize.compare of the network and run its stage quantize"
        )
    frame = pd.DataFrame([row for record in records for row in _rows(record, root)])
    spec, primary = dag.spec_of(network, "dense", scale), records[0].primary
    better = records[0].higher_is_better
    treatments = sorted(frame.treatment.unique())
    return Table(
        name="calibrators",
        title=study_title(f"INT8 of {spec.title} by calibrator", scale),
        header=[
            "Calibrator",
            *(f"{t} {metric_title(primary)} {arrow(better)}" for t in treatments),
        ],
        rows=[
            [Text(name), *(_cell(frame, name, t, primary, better) for t in treatments)]
            for name in frame.calibrator.unique()
        ],
        notes=[
            ("", f"The network's own is `{spec.quantize.calibrator}`."),
            ("", "In brackets: range over seeds, and the change, positive if better."),
            ("", f"Seeds: {', '.join(str(seed) for seed in sorted(frame.seed.unique()))}."),
        ],
        numbers=frame,
    )


def _rows(record: Record, root: Path) -> list[dict]:
    metric = record.primary.rpartition("/")[2]
    scores = {row["calibrator"]: row[metric] for row in record.sparsity["calibrators"]}
    before = root / dag.upstream(record.cell)["weights"].parent / "record.json"
    scores = {BEFORE: read(before).metrics[record.primary]} | scores
    shared = {"treatment": record.cell.treatment, "seed": record.cell.seed}
    return [shared | {"calibrator": name, "value": value} for name, value in scores.items()]


def _cell(frame: pd.DataFrame, name: str, treatment: str, primary: str, better: bool) -> Text:
    values: dict[str, dict[int, float]] = defaultdict(dict)
    for row in frame[frame.treatment == treatment].itertuples():
        values[row.calibrator][row.seed] = row.value
    own, before = values[name], values[BEFORE]
    if not own:
        return Text("–")
    mean = sum(own.values()) / len(own)
    change = sum(own[seed] - before[seed] for seed in own) / len(own) * (1 if better else -1)
    low, high = (number(pick(own.values()), primary) for pick in (min, max))
    return Text(
        number(mean, primary),
        change="" if name == BEFORE else signed(change, primary, 2 if better else None),
        spread=f"[{low}, {high}]" if len(own) > 1 else "",
    )
