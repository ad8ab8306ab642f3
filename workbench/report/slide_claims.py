"""What the slides say of two methods, and whether it holds here: difference, interval, margin."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from typing import TYPE_CHECKING

import pandas as pd

from workbench.report import compare, equivalence
from workbench.report.cells import Table, Text
from workbench.report.equivalence import Test
from workbench.report.wording import DASH, interval, number, signed, study_title
from workbench.spec import Claim

if TYPE_CHECKING:
    from workbench.report.methods import Rows

HOLDS, FAILS = "holds", "does not hold"
_OUTCOMES = {
    "better": {"better": HOLDS, "worse": FAILS, "equivalent": FAILS},
    "same": {"equivalent": HOLDS, "better": FAILS, "worse": FAILS},
}


def tests(claims: Iterable[Claim], rows: Rows) -> pd.DataFrame:
    """A row per claim: what is compared, the test, and the outcome."""
    return pd.DataFrame(
        [
            claim.model_dump() | asdict(found) | {"outcome": outcome(claim, found)}
            for claim, found in _tested(claims, rows)
        ]
    )


def outcome(claim: Claim, found: Test) -> str:
    """`holds`, `does not hold`, or why that is open."""
    if found.verdict == "equivalent" and claim.relation == "better" and found.low > 0:
        return HOLDS  # better by less than the spread of a run is better all the same
    return _OUTCOMES[claim.relation].get(found.verdict, found.verdict or "no record")


def table(claims: Iterable[Claim], rows: Rows, scale: str) -> Table:
    """The claims with their outcomes; the first note counts them."""
    tested = _tested(claims, rows)
    outcomes = [outcome(claim, found) for claim, found in tested]
    count = {word: outcomes.count(word) for word in dict.fromkeys(outcomes)}
    summary = ", ".join(f"{word}: {times}" for word, times in count.items())
    return Table(
        name="claims",
        title=study_title("Whether the talk's order holds", scale),
        header=["The slides", "Compared", "Difference", "Margin", "Outcome"],
        rows=[_row(claim, found, rows) for claim, found in tested],
        notes=[
            ("", f"{len(outcomes)} claims. {summary[:1].upper()}{summary[1:]}."),
            (
                "",
                "Difference: of the means, positive where the first is better, with its "
                f"{equivalence.CONFIDENCE} % interval over seeds. `Better than` holds if the "
                "interval lies above zero; `as good as` if it lies inside the margin, which is the "
                "range over seeds of the dense trainings.",
            ),
        ],
        numbers=tests(claims, rows),
        kind="claims",
    )


def _tested(claims: Iterable[Claim], rows: Rows) -> list[tuple[Claim, Test]]:
    found = []
    for claim in claims:
        if claim.method in rows.by_key and claim.than in rows.by_key:
            ours, theirs = (rows.by_key[key].values for key in (claim.method, claim.than))
            gained = compare.gains(ours, theirs, rows.higher)
            found.append((claim, equivalence.test(gained, rows.margin)))
    return found


def _row(claim: Claim, found: Test, rows: Rows) -> list[Text]:
    ours, theirs = (rows.by_key[key].method.title for key in (claim.method, claim.than))
    relation = {"better": "better than", "same": "as good as"}[claim.relation]
    empty = found.difference != found.difference
    return [
        Text(claim.slide),
        Text(f"{ours} {relation} {theirs}"),
        Text(
            DASH if empty else signed(found.difference, rows.metric),
            spread=interval(found.low, found.high, rows.metric),
        ),
        Text(DASH if found.margin != found.margin else f"±{number(found.margin, rows.metric)}"),
        Text(outcome(claim, found)),
    ]
