"""What a reader of a table has to know: rules, missing and stale records, origins."""

from pathlib import Path
from typing import Any

import pandas as pd

from workbench import failure
from workbench.report import compare, equivalence
from workbench.report.wording import column_title
from workbench.spec import Column

STALE = "†"
_SUPERSCRIPTS = str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹")


class Notes:
    """Footnotes in the order of their marks; the same text is said once."""

    def __init__(self) -> None:
        """Start without notes."""
        # (what, why) -> networks that lack it
        self._missing: dict[tuple[str, str], list[tuple[str, Path]]] = {}
        self._stale: list[str] = []
        self._plain: list[str] = []

    def listed(self) -> list[tuple[str, str]]:
        """The (mark, text) pairs; notes about the whole table have no mark."""
        numbered = [
            (_superscript(number), _no_record(what, rows))
            for number, (what, rows) in enumerate(self._missing.items(), 1)
        ]
        stale = "made from an older spec, or from files that were made again since; run again: "
        daggers = [(STALE, stale + "; ".join(self._stale))] if self._stale else []
        return numbered + daggers + [("", text) for text in self._plain]

    def marks(
        self,
        row: dict[str, Any],
        columns: compare.Columns,
        seeds: list[int],
        frame: pd.DataFrame,
        root: Path,
    ) -> dict[str, str]:
        """The marks of a row's cells by column, and of its name under `network`."""
        own = frame[frame.network == row["network"]]
        lacking = {key: _lacking(own, column, seeds) for key, column in columns.items()}
        stale = {key: _stale(own, column) for key, column in columns.items()}
        mark = self._mark_missing(row, columns, lacking, root) if any(lacking.values()) else ""
        if named := [
            f"{column_title(key)} (seed {found})" for key, found in stale.items() if found
        ]:
            self._stale.append(f"{row['title']}: {', '.join(named)}")
        cells = {
            key: (mark if lacking[key] else "") + (STALE if stale[key] else "") for key in columns
        }
        return cells | {"network": STALE if named else ""}

    def add_rules(self, rows: list[dict[str, Any]], columns: compare.Columns, slides: str) -> None:
        """How to read the columns: differences, recovered share, verdict, talk, precision."""
        base = column_title(compare.baseline(columns))
        self._plain += [
            f"Signed numbers: difference to {base} in the metric's good direction (positive is "
            "better), paired over seeds. In brackets: range over seeds. Every number is that of "
            "the last step.",
            "Pruned: before any retraining; where phases follow the prune point, the final dense "
            "network under the masks. Recovered: (retrained − pruned) / (dense − pruned).",
            self._rule("the mean difference of the sparse network to the dense one"),
        ]
        if any(each.against != compare.baseline(columns) for row in rows for each in row["tests"]):
            self._plain.append(
                "At equal compute: the same against the dense network that was trained a second "
                "full schedule, as the sparse one was; what is trained from scratch has the "
                "compute of the first dense training."
            )
        if slides:
            self._plain.append(
                f"Talk: the numbers printed on its slides ({slides}), on the talk's "
                "own data; its differences are computed from its values."
            )
        other = sorted({row["precision"] for row in rows} - {"fp16"})
        if other and any("fp16" in key for key in columns):
            self._plain.append(
                f"Columns are named as in the talk; at this scale the networks "
                f"train and are judged in {', '.join(other)}, not FP16."
            )

    def add_methods(self, slides: str, sizes: dict[str, str]) -> None:
        """How to read a table of methods: sizes, magnitude, verdicts, time, and what is scaled."""
        self._plain += [
            "Weights: of the layers with input channels, pruned or not. Kept magnitude: the share "
            "of the sum of |w| of the pruned layers, at the moment of pruning. Size: all "
            "parameters at 16 bits, what is kept with what says where it lies: 2 bits a value for "
            "2:4, one bit a block, and for unstructured zeros CSR with 16-bit columns and 32-bit "
            "row pointers. In brackets: range over seeds.",
            self._rule("its mean difference to the dense network"),
            "Speedup of GEMMs: 2:4 against dense on BERT-Large's products in fp16, from `workbench "
            "bench gemm`; a dash for 2:4 where that is not recorded, and for other patterns, which "
            "have no kernel here. Minutes: of a seed's own stages, the training of the dense "
            "network that was pruned left out.",
        ]
        if built := [text for text in dict.fromkeys(sizes.values()) if text]:
            self._plain.append(f"At this scale is built: {'; '.join(built)}.")
        if slides:
            self._plain.append(f"Slides: {slides}.")

    def _rule(self, difference: str) -> str:
        return (
            "Margin: the range over seeds of the dense network or of its second training, the "
            f"larger, declared as what a difference may be. A verdict is of {difference} and its "
            f"{equivalence.CONFIDENCE} % interval (Student's t over paired seeds): `equivalent` if "
            "the interval lies inside the margin (two one-sided tests at 5 %), `better` or `worse` "
            "if it does not and excludes zero, else `undecided`: three seeds decide large and very "
            "steady differences only."
        )

    def add_origins(self, frame: pd.DataFrame) -> None:
        """Which commits the records come from, if that is not one clean commit."""
        commits = sorted(set(frame.git))
        if len(commits) > 1:
            counts = [f"{commit} ({_count(frame[frame.git == commit])})" for commit in commits]
            self._plain.append(f"Mixed commits: {', '.join(counts)}.")
        if commits == ["unknown"]:
            self._plain.append("Commit unknown: no repository tracked the sources.")
        if len(dirty := frame[frame.dirty.astype(bool)]):
            self._plain.append(
                f"{_count(dirty)} made from a tree that differs from its commit: "
                f"{', '.join(sorted(set(dirty.network)))}."
            )
        if len(devices := sorted(set(frame.device))) > 1:
            self._plain.append(f"Mixed devices: {', '.join(devices)}.")

    def _mark_missing(
        self,
        row: dict[str, Any],
        columns: compare.Columns,
        lacking: dict[str, list[int]],
        root: Path,
    ) -> str:
        by_seeds: dict[str, list[str]] = {}
        failed = []
        for key, found in lacking.items():
            if found:
                stage = f"{columns[key].treatment}/{columns[key].stage}"
                by_seeds.setdefault(_listed(found), []).append(stage)
                failed += _failed(root / row["scale"] / row["network"], stage, found)
        named = {
            found: "any stage" if len(stages) == len(columns) else ", ".join(stages)
            for found, stages in by_seeds.items()
        }
        missing = "; ".join(f"{stages} (seed {found})" for found, stages in named.items())
        what = (missing, "; ".join(failed))
        where = Path(root.name, row["scale"], row["network"])
        self._missing.setdefault(what, []).append((row["title"], where))
        return _superscript(list(self._missing).index(what) + 1)


def _failed(folder: Path, stage: str, seeds: list[int]) -> list[str]:
    """The errors of attempts at a stage, each with its seed."""
    reasons = {seed: failure.reason(folder / f"seed{seed}" / stage) for seed in seeds}
    return [f"{stage} (seed {seed}) failed: {why}" for seed, why in reasons.items() if why]


def _no_record(what: tuple[str, str], rows: list[tuple[str, Path]]) -> str:
    titles = ", ".join(title for title, _ in rows)
    where = rows[0][1] if len(rows) == 1 else rows[0][1].parent
    missing, failed = what
    return f"{titles}: no record of {missing} under `{where}`" + (f"; {failed}" if failed else "")


def _lacking(own: pd.DataFrame, column: Column, seeds: list[int]) -> list[int]:
    return sorted(set(seeds) - set(_of(own, column).seed))


def _stale(own: pd.DataFrame, column: Column) -> str:
    rows = _of(own, column)
    return _listed(sorted(set(rows[~rows.current.astype(bool)].seed)))


def _of(own: pd.DataFrame, column: Column) -> pd.DataFrame:
    return own[(own.treatment == column.treatment) & (own.stage == column.stage)]


def _listed(seeds: list[int]) -> str:
    return ", ".join(str(seed) for seed in seeds)


def _count(frame: pd.DataFrame) -> str:
    count = len(frame[["network", "treatment", "stage", "seed"]].drop_duplicates())
    return f"{count} record{'s' if count > 1 else ''}"


def _superscript(count: int) -> str:
    return str(count).translate(_SUPERSCRIPTS)
